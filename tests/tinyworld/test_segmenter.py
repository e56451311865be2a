"""The built-in subject finder on pictures of subjects, and in styles, that it never saw; true masks are their alpha."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from likeness.segmentation.subject import SubjectSegmenter, load_subject_segmenter
from likeness.tinyworld.dataset import BACKGROUNDS, plain_batch
from likeness.tinyworld.split import load_split
from likeness.tinyworld.train_segmenter import iou, shipped_vae, textured, through
from likeness.tinyworld.truth import held_out_pictures

BAR = 0.85


@pytest.fixture(scope="module")
def finder() -> SubjectSegmenter:
    return load_subject_segmenter()


def held_out(styles: tuple[str, ...]) -> np.ndarray:
    """(N, 64, 64, 4): every held-out subject in these styles, every other one for time."""
    found = held_out_pictures()
    return np.stack([found[name, style] for name in load_split().held_out_subjects[::2] for style in styles])


def true_masks(rgba: np.ndarray) -> Tensor:
    return torch.from_numpy(rgba[..., 3] > 127).float()


@torch.no_grad()
def mean_iou(finder: SubjectSegmenter, pictures: Tensor, masks: Tensor) -> float:
    return float(iou(torch.cat([finder.probability(part) for part in pictures.split(32)]), masks).mean())


@pytest.mark.parametrize(("background", "blurred"), [("white", BAR), ("blue", 0.75), ("gray", 0.75)])
def test_held_out_subjects_are_found(finder: SubjectSegmenter, background: str, blurred: float) -> None:
    """Mean IoU of held-out subjects in six styles, at least .85; by way of the small autoencoder, which rubs thin parts
    out, .85 on white, and .75 on colours (measured .77 and more). Fails with weights that are not those that ship
    (random ones have less than .5), or on another scale of colours."""
    rgba = held_out(load_split().pretrain_styles)[::2]
    pictures, masks = plain_batch(rgba, BACKGROUNDS.get(background, (255, 255, 255))), true_masks(rgba)
    assert mean_iou(finder, pictures, masks) >= BAR
    drawn = torch.cat([through(shipped_vae(), part, torch.zeros(len(part), 4, 8, 8)) for part in pictures.split(32)])
    assert mean_iou(finder, drawn, masks) >= blurred
    torch.manual_seed(0)
    assert mean_iou(SubjectSegmenter().eval(), drawn[:32], masks[:32]) < 0.5


def test_a_style_that_it_never_saw_and_backgrounds_with_texture(finder: SubjectSegmenter) -> None:
    """Fails if it has learnt the six styles or plain colours by heart."""
    retro = held_out(("noto-v1",))
    assert mean_iou(finder, plain_batch(retro), true_masks(retro)) >= BAR
    rng = np.random.default_rng(3)
    shown = torch.from_numpy(retro.astype(np.float32) / 255).permute(0, 3, 1, 2)
    ground = torch.stack([textured(rng, retro) for _ in retro])
    assert mean_iou(finder, shown[:, :3] * shown[:, 3:] + ground * (1 - shown[:, 3:]), true_masks(retro)) >= 0.7


def test_an_empty_picture_has_no_subject(finder: SubjectSegmenter) -> None:
    """Fails if something is found on a plain colour."""
    plain = torch.stack([torch.tensor(colour).view(3, 1, 1).expand(3, 64, 64) / 255 for colour in BACKGROUNDS.values()])
    assert float((finder.probability(plain) > 0.5).float().mean()) < 0.02


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 50), (37, 61), (64, 64), (128, 100), (768, 1024)])
def test_any_size(finder: SubjectSegmenter, height: int, width: int) -> None:
    """Fails where a side is no multiple of what the network halves, or comes back at another size."""
    found = finder.probability(torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0)))
    assert found.shape == (1, height, width) and bool((found >= 0).all() and (found <= 1).all())


def test_neighbours_in_a_batch_do_not_matter(finder: SubjectSegmenter) -> None:
    """Alone, in a batch, and in another order: the same mask. Fails with statistics over the batch."""
    pictures = plain_batch(held_out(("noto",))[:5])
    together = finder.probability(pictures)
    assert torch.allclose(finder.probability(pictures.flip(0)).flip(0), together, atol=1e-5)
    assert torch.allclose(finder.probability(pictures[2:3])[0], together[2], atol=1e-5)


def test_bad_input_is_told(finder: SubjectSegmenter, tmp_path: object) -> None:
    """Fails if a ComfyUI IMAGE, whose channels come last, is taken for a picture of another size."""
    for shape in ((1, 64, 64, 3), (0, 3, 8, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match=r"must be \(B, 3, H, W\)"):
            finder.probability(torch.rand(shape))
    from pathlib import Path

    with pytest.raises(ValueError, match="cannot be read"):
        load_subject_segmenter(Path(str(tmp_path)) / "none.safetensors")
