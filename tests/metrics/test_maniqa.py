"""MANIQA against the authors' own code: the same file and pictures.

Run once more with transformers 4 by test_backbones_older.py.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from likeness.devtools import tiny_maniqa as tiny
from likeness.metrics.maniqa import CROPS, Maniqa, crop_places, maniqa, mean_maniqa
from likeness.metrics.maniqa_files import is_maniqa, load_maniqa

# models/maniqa.py of github.com/IIGROUP/MANIQA (master, the same at the tags Koniq10k and Kadid10k) with timm 0.6.13,
# on tiny_maniqa's tensors, its timm ViT made with this file's sizes and .cuda() left out; pictures as (x − .5) / .5.
AUTHORS = [0.65787584, 0.58870327, 0.42569283]


def first_place(crops: Tensor) -> Tensor:
    """Stands for a network: a crop's score is its first number."""
    return crops[:, 0, 0, 0]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Maniqa:
    return load_maniqa(tiny.maniqa(tmp_path_factory.mktemp("maniqa") / "ckpt_koniq10k.pt"))


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    levels = np.stack([np.random.RandomState(k).randint(0, 256, (14, 16, 3), dtype=np.uint8) for k in range(3)])
    return torch.from_numpy(levels.repeat(16, 1).repeat(14, 2)).permute(0, 3, 1, 2).float() / 255


def test_scores_are_those_of_the_authors_code(network: Maniqa, pictures: Tensor) -> None:
    """Fails for a weight that goes elsewhere, other blocks of the ViT, channel attention without its reshape, windows
    that are not shifted or masked, another sum, or other colours."""
    assert maniqa(pictures, network).tolist() == pytest.approx(AUTHORS, abs=2e-6)
    assert network.description == "MANIQA ckpt_koniq10k, 20 crops of 224"


@settings(max_examples=5)
@given(st.permutations([0, 1, 2, 1]))
def test_order_does_not_matter(network: Maniqa, pictures: Tensor, order: list[int]) -> None:
    """Fails where a picture's score depends on its neighbours."""
    assert maniqa(pictures[order], network).tolist() == pytest.approx([AUTHORS[number] for number in order], abs=2e-6)


@settings(max_examples=10)
@given(st.integers(224, 300), st.integers(224, 300))
def test_crops_lie_within_and_are_the_same_again(high: int, wide: int) -> None:
    """Fails where a crop leaves the picture, the places depend on the chance of others, or all are one."""
    torch.manual_seed(high)
    places = crop_places(high, wide)
    assert places == crop_places(high, wide) and len(places) == CROPS
    assert all(0 <= top <= high - 224 and 0 <= left <= wide - 224 for top, left in places)
    assert len(set(places)) > 5 or (high - 223) * (wide - 223) < 40


def test_a_score_is_the_mean_of_its_crops(network: Maniqa) -> None:
    """A picture that holds its own places as colours. Fails where a crop is taken twice or elsewhere, or is resized;
    and the last row and column are reached."""
    picture = torch.zeros(1, 3, 260, 300)
    picture[0, 0] = (torch.arange(260)[:, None] * 300 + torch.arange(300)) / (260 * 300)
    want = np.mean([(top * 300 + left) / (260 * 300) for top, left in crop_places(260, 300)])
    looked: list[int] = []
    found = maniqa(picture, first_place, lambda: looked.append(1))
    assert float(found) == pytest.approx(want, abs=1e-6) and len(looked) == 5
    many = [crop_places(225, 225 + extra) for extra in range(20)]
    assert {top for places in many for top, _ in places} == {0, 1}
    assert mean_maniqa(picture.expand(2, -1, -1, -1), first_place) == pytest.approx(want, abs=1e-6)


def test_files_that_are_it_and_files_that_are_not(tmp_path: Path, pictures: Tensor) -> None:
    """Fails where a converted file is not read, a missing tensor or another model gives a score, or a pickled program
    is run."""
    state = {name: tensor.contiguous() for name, tensor in tiny.published().items()}
    save_file(state, tmp_path / "maniqa.safetensors")
    assert maniqa(pictures, load_maniqa(tmp_path / "maniqa.safetensors")).tolist() == pytest.approx(AUTHORS, abs=2e-6)
    assert [is_maniqa(name) for name in ("ckpt_kadid10k.pt", "MANIQA.pth", "alexnet.pth")] == [True, True, False]
    bias = "tablock2.1.c_k.bias"
    large = {"vit.pos_embed": torch.zeros(1, 577, 128), "vit.patch_embed.proj.weight": torch.zeros(128, 3, 16, 16)}
    wrong = {
        f"lacks 1 of MANIQA's .*{bias}": {name: tensor for name, tensor in state.items() if name != bias},
        r"conv1.weight is \(2, 2\)": state | {"conv1.weight": torch.zeros(2, 2)},
        "is not MANIQA, it has no vision transformer": {"weight": torch.zeros(2)},
        "sees 384 pixels": state | large,
    }
    for said, tensors in wrong.items():
        torch.save(tensors, tmp_path / "wrong.pt")
        with pytest.raises(ValueError, match=said):
            load_maniqa(tmp_path / "wrong.pt")
    torch.save(Path("a program"), tmp_path / "wrong.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        load_maniqa(tmp_path / "wrong.pt")


def test_pictures_that_are_none(network: Maniqa, pictures: Tensor) -> None:
    """Fails where small pictures are enlarged, or NaN gives a score."""
    broken = pictures.clone()
    broken[1, 0, 0, 0] = float("nan")
    for shown, said in ((pictures[..., :223], "223 × 224"), (broken, "must lie in"), (pictures[:0], "at least one")):
        with pytest.raises(ValueError, match=said):
            maniqa(shown, network)
    with pytest.raises(ValueError, match="no number"):
        maniqa(pictures, lambda crops: crops.mean((1, 2, 3)) / 0 * 0)
