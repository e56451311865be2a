"""A batch through the host's side of grounded segmentation, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from likeness.segmentation.grounded import FindOptions


class Brightness(nn.Module):
    """Takes what is bright for the subject."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def probability(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.mean(1) * self.weight


@pytest.fixture()
def segment(comfy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The module, with a built-in subject finder whose answer is known."""
    from likeness.nodes.host import finders, segment

    weights = tmp_path / "subject.safetensors"
    weights.write_bytes(b"")
    monkeypatch.setattr(finders, "WEIGHTS", weights)
    monkeypatch.setattr(finders, "load_subject_segmenter", Brightness)
    return segment


def run(segment: Any, images: torch.Tensor, options: FindOptions | None = None, **more: Any) -> Any:
    more = {"detector": None, "segmenter": None, "given": None, "mask": None, **more}
    return segment.found_in_batch(images, "a cat", options or FindOptions(), **more)


def scenes(channels: int = 3) -> torch.Tensor:
    """Three frames of 31 × 45, odd sizes; the middle one is dark."""
    images = torch.full((3, 31, 45, channels), 0.1)
    images[0, 5:15, 5:20, :3] = 0.9
    images[2, 10:30, 30:44, :3] = 0.9
    images[2, 1:7, 1:7, :3] = 0.8
    return images


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_batch_in_batch_out(channels: int, dtype: torch.dtype, segment: Any) -> None:
    """Frames keep their places, one without a find too; grey, alpha and half pictures. Fails if a frame is skipped, or
    alpha counts as a colour."""
    images = scenes(channels)
    if channels == 4:
        images[1, ..., 3] = 1  # opaque, and yet dark
    found = run(segment, images.to(dtype))
    assert found.mask.dtype == torch.float32
    assert torch.equal(found.mask, (scenes()[..., 0] > 0.5).float())
    assert found.object_masks.shape == (3, 31, 45) and found.overlay.shape == (3, 31, 45, 3)
    assert [len(frame) for frame in found.bounding_boxes] == [1, 0, 2]
    assert "nothing in frame 1" in found.report
    reverse = run(segment, images.flip(0))
    assert torch.equal(reverse.mask, found.mask.flip(0))


def test_nothing_at_all_and_one_pixel(segment: Any) -> None:
    """No find: one empty object mask. A picture of one pixel works."""
    found = run(segment, torch.zeros(2, 9, 9, 3))
    assert found.object_masks.shape == (1, 9, 9) and not found.object_masks.any() and not found.mask.any()
    assert run(segment, torch.ones(1, 1, 1, 3)).mask.tolist() == [[[1.0]]]


def test_masks_of_others(segment: Any) -> None:
    """One for all is cut in pieces; several for one picture are an object each; another size is scaled."""
    mask = torch.zeros(1, 31, 45)
    mask[0, :5, :5], mask[0, 20:, 30:] = 1, 0.75
    found = run(segment, scenes(), mask=mask)
    assert [len(frame) for frame in found.bounding_boxes] == [2, 2, 2] and torch.equal(
        found.mask, mask.expand(3, -1, -1)
    )
    several = torch.stack([mask[0], torch.zeros(31, 45), torch.ones(31, 45)])
    found = run(segment, scenes()[:1], mask=several)
    assert torch.equal(found.object_masks, several[[0, 2]])
    assert found.bounding_boxes[0][1]["width"] == 45
    assert run(segment, scenes(), mask=torch.ones(62, 90)).mask.all()
    with pytest.raises(ValueError, match="mask has 2 masks, but there are 3 pictures"):
        run(segment, scenes(), mask=torch.ones(2, 31, 45))


def test_boxes_of_others(segment: Any) -> None:
    """They are used as they are; the segmenter looks into each."""
    found = run(segment, scenes(), given=[[{"x": 5, "y": 5, "width": 8, "height": 10}], [], []])
    assert int(found.mask[0].sum()) == 80 and not found.mask[1:].any()


def test_cancel(comfy: Any, segment: Any) -> None:
    """The host's cancel ends the batch; fails if it is swallowed."""
    comfy.model_management.interrupt_current_processing(True)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run(segment, scenes())
    finally:
        comfy.model_management.interrupt_current_processing(False)
