"""The subject's region: what is outside of the mask changes nothing, what is inside does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from likeness.metrics.region import subject_regions


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def box(high: int, wide: int, top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(1, high, wide)
    mask[:, top:bottom, left:right] = 1
    return mask


@given(st.integers(0, 10**6), st.integers(9, 40), st.integers(9, 40), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_what_is_outside_of_the_mask_changes_nothing(seed: int, high: int, wide: int, margin: float) -> None:
    """Random soft masks, all outside replaced. Fails where a soft edge, or the box without the mask, is let through."""
    pictures, masks = noise(seed, 2, 3, high, wide), noise(seed + 1, 2, high, wide) ** 2
    inside = (masks >= 0.5)[:, None]
    others = torch.where(inside, pictures, noise(seed + 2, 2, 3, high, wide))
    for one, other in zip(
        subject_regions(pictures, masks, margin), subject_regions(others, masks, margin), strict=True
    ):
        assert one is not None and other is not None and torch.equal(one, other)
    marked = torch.where(inside, 1 - pictures, pictures)
    for one, other in zip(subject_regions(pictures, masks), subject_regions(marked, masks), strict=True):
        assert one is not None and other is not None and not torch.equal(one, other)  # what is inside, does


@given(st.integers(0, 20), st.integers(0, 20), st.integers(4, 12), st.integers(4, 12))
@settings(max_examples=30, deadline=None)
def test_the_region_moves_with_the_subject(top: int, left: int, high: int, wide: int) -> None:
    """The same subject at two places gives the same region, at the edge too. Fails where the crop is clipped there."""
    subject = noise(7, 3, high, wide)
    regions = []
    for y, x in ((top, left), (20 - top, 20 - left)):
        picture = noise(y, 1, 3, 32, 32)
        picture[0, :, y : y + high, x : x + wide] = subject
        regions += subject_regions(picture, box(32, 32, y, x, y + high, x + wide))
    assert regions[0] is not None and regions[1] is not None and torch.equal(regions[0], regions[1])


def test_the_box_by_hand() -> None:
    """A subject of 10 × 20 with margin .1: a square of 24, the subject in its middle, grey around."""
    pictures = noise(0, 1, 3, 60, 60)
    (region,) = subject_regions(pictures, box(60, 60, 5, 30, 15, 50), margin=0.1)
    assert region is not None and region.shape == (3, 24, 24)
    assert torch.equal(region[:, 7:17, 2:22], pictures[0, :, 5:15, 30:50])
    region[:, 7:17, 2:22] = 0.5
    assert (region == 0.5).all()


def test_no_subject_is_none_and_one_mask_serves_all() -> None:
    """Fails where a picture without its subject gets a score, or one mask is used for the first picture only."""
    pictures = noise(0, 3, 3, 20, 20)
    masks = torch.cat([box(20, 20, 2, 2, 9, 9), torch.zeros(1, 20, 20), torch.full((1, 20, 20), 0.49)])
    found = subject_regions(pictures, masks)
    assert found[0] is not None and found[1] is None and found[2] is None
    assert all(region is not None for region in subject_regions(pictures, masks[:1]))


@pytest.mark.parametrize(
    ("masks", "margin", "says"),
    [
        (torch.ones(2, 20, 20), 0.1, "one a picture"),
        (torch.ones(3, 64, 64), 0.1, r"64 × 64, pictures 30 × 20.*empty mask"),
        (torch.full((1, 20, 30), torch.nan), 0.1, "NaN"),
        (torch.ones(20, 30), 0.1, "one a picture"),
        (torch.ones(1, 20, 30), -1.0, "margin"),
    ],
)
def test_masks_that_do_not_fit_are_refused(masks: Tensor, margin: float, says: str) -> None:
    """Fails where a mask is stretched or broadcast without a word."""
    with pytest.raises(ValueError, match=says):
        subject_regions(noise(0, 3, 3, 20, 30), masks, margin)
