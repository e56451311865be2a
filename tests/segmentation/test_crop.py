"""Crop and stitch: what must come back, what must stay, and how a seam is measured."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.segmentation.crop import blend, crop_around, cut, seam_error, stitch


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.data(),
    st.floats(1, 4),
    st.sampled_from([0, 16, 64]),
    st.sampled_from([1, 8]),
)
@settings(max_examples=80, deadline=None)
def test_the_piece_holds_the_mask_and_lies_in_the_picture(
    height: int, width: int, data: st.DataObject, context: float, size: int, multiple: int
) -> None:
    """Fails if a mask at the border is cut, the piece leaves the picture, or the work's sides are no multiples."""
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    mask = torch.zeros(height, width)
    mask[y : y + data.draw(st.integers(1, 9)), x : x + data.draw(st.integers(1, 9))] = 1
    crop = crop_around(mask, context, size, multiple)
    assert crop is not None
    assert 0 <= crop.top < crop.bottom <= height and 0 <= crop.left < crop.right <= width
    assert mask[crop.top : crop.bottom, crop.left : crop.right].sum() == mask.sum()
    assert crop.height % multiple == 0 and crop.width % multiple == 0
    if size:
        assert max(crop.height, crop.width) == size
    picture = torch.rand(3, height, width)
    patch = torch.rand(3, crop.height, crop.width)
    out = stitch(picture, patch, mask, crop)
    assert torch.equal(out[:, mask == 0], picture[:, mask == 0])


def test_no_mask_no_piece() -> None:
    """Fails if nothing becomes the whole picture."""
    assert crop_around(torch.zeros(5, 5), 2, 0) is None


def test_a_piece_at_its_own_size_comes_back_whole() -> None:
    """Cut and stitched without a change of size it is the same to the bit. Fails by one row or column."""
    picture, mask = torch.rand(3, 64, 48), torch.zeros(64, 48)
    mask[10:20, 30:40] = 1
    crop = crop_around(mask, 1.6, 16)
    assert crop is not None and (crop.bottom - crop.top, crop.right - crop.left) == (crop.height, crop.width)
    assert torch.equal(stitch(picture, cut(picture, crop), mask, crop), picture)
    marked = stitch(picture, torch.zeros(3, crop.height, crop.width), mask, crop)
    assert (marked[:, mask == 1] == 0).all()


def test_a_seam_is_the_step_that_was_not_there() -> None:
    """Closed form: .3 added inside of a constant picture is a seam of .3; feathered to 0 at its edge, almost none."""
    base, mask = torch.full((3, 40, 40), 0.5), torch.zeros(40, 40)
    mask[10:30, 10:30] = 1
    assert seam_error(base, blend(base, base + 0.3, mask), mask) == pytest.approx(0.3, abs=1e-6)
    assert seam_error(base, base, mask) == 0
    soft = mask.clone()
    for edge, value in enumerate((0.02, 0.3, 0.7)):
        ring = torch.zeros(40, 40, dtype=torch.bool)
        ring[10 + edge : 30 - edge, 10 + edge : 30 - edge] = True
        ring[11 + edge : 29 - edge, 11 + edge : 29 - edge] = False
        soft[ring] = value
    assert seam_error(base, blend(base, base + 0.3, soft), soft) < 0.01


@pytest.mark.parametrize(("context", "size"), [(0.5, 64), (2.0, 4)])
def test_a_piece_that_cannot_be_is_told(context: float, size: int) -> None:
    """Fails if a context below 1 cuts the subject in silence."""
    with pytest.raises(ValueError, match="at least"):
        crop_around(torch.ones(9, 9), context, size)
