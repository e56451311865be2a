"""Masks: against brute force, and the algebra that growing must have."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from likeness.segmentation.masks import distance, extent, feather, grow, masks_for


@st.composite
def drawn(draw: st.DrawFn) -> Tensor:
    """Binary masks of odd sizes, from one pixel on, empty and full ones among them."""
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    bits = draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    return torch.tensor(bits, dtype=torch.float32).reshape(height, width)


@given(drawn())
@settings(max_examples=40, deadline=None)
def test_distances_are_those_of_brute_force(mask: Tensor) -> None:
    """Fails on a distance that is not Euclidean, or measured from the wrong side."""
    places = [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1])]
    inside = [place for place in places if mask[place] > 0.5]
    found = distance(mask)
    for place in places:
        expected = min((math.dist(place, other) for other in inside), default=math.inf)
        assert float(found[place]) == pytest.approx(expected, abs=1e-5)


@given(drawn(), st.floats(0, 4), st.floats(0, 4))
@settings(max_examples=40, deadline=None)
def test_growing_has_its_algebra(mask: Tensor, one: float, other: float) -> None:
    """Fails if growing loses pixels, is not monotone, goes too far when done twice, or shrinking is not its dual."""
    low, high = sorted((one, other))
    assert torch.equal(grow(mask, 0), mask)
    assert (grow(mask, low) <= grow(mask, high)).all() and (mask <= grow(mask, low)).all()
    assert (grow(grow(mask, one), other) <= grow(mask, one + other + 1e-4)).all()  # the triangle's inequality
    assert torch.equal(grow(1 - mask, -one), 1 - grow(mask, one))


@given(drawn(), st.floats(0.5, 6))
@settings(max_examples=30, deadline=None)
def test_feathering_keeps_the_range_and_what_is_uniform(mask: Tensor, pixels: float) -> None:
    """Fails if the border counts as 0 (a full mask would fade at it), or values leave [0, 1]."""
    soft = feather(mask, pixels)
    assert soft.min() >= 0 and soft.max() <= 1
    for value in (0.0, 1.0):
        assert torch.allclose(feather(torch.full_like(mask, value), pixels), torch.full_like(mask, value), atol=1e-6)


def test_an_edge_stays_where_it_was() -> None:
    """A straight edge feathered is ½ at the edge: fails if feathering moves the mask."""
    mask = torch.zeros(40, 40)
    mask[:, 20:] = 1
    soft = feather(mask, 6)
    assert float(soft[20, 19] + soft[20, 20]) / 2 == pytest.approx(0.5, abs=1e-6)
    assert float(soft[20, 5]) == 0 and float(soft[20, 35]) == pytest.approx(1)


def test_extent_of_all_that_is_there() -> None:
    """Fails by one pixel at an end, or on an empty mask."""
    mask = torch.zeros(7, 9)
    assert extent(mask) is None
    mask[2, 3] = mask[5, 8] = 0.01
    assert extent(mask) == (2, 3, 6, 9)


@pytest.mark.parametrize("shape", [(8, 6), (1, 8, 6), (3, 8, 6), (1, 1, 4, 3)])
def test_masks_fit_their_pictures(shape: tuple[int, ...]) -> None:
    """Fails if one mask does not serve all, or a smaller one is not resized to what it would be."""
    fitted = masks_for(torch.full(shape, 0.25), 3, 8, 6)
    assert fitted.shape == (3, 8, 6) and torch.allclose(fitted, torch.tensor(0.25))


@pytest.mark.parametrize(
    ("masks", "said"),
    [
        (torch.zeros(2, 8, 6), "2 masks for 3 pictures"),
        (torch.full((8, 6), 2.0), r"in \[0, 1\]"),
        (torch.full((8, 6), math.nan), r"in \[0, 1\]"),
        (torch.zeros(8), "must be"),
    ],
)
def test_what_fits_not_is_told(masks: Tensor, said: str) -> None:
    """Fails if a batch is cut or repeated in silence."""
    with pytest.raises(ValueError, match=said):
        masks_for(masks, 3, 8, 6)
