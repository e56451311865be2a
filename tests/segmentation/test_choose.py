"""Eq. 3 of Image-Alchemy against loops over pixels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from likeness.segmentation.choose import EQUATION, OWN, choose, terms
from likeness.segmentation.found import Hypotheses


def by_hand(mask: torch.Tensor, box: list[float], penalty: float) -> float:
    """Σ over pixels, one by one: a pixel is in the box if its centre is."""
    x0, y0, x1, y1 = box
    both = either = area = whole = 0
    for y in range(mask.shape[0]):
        for x in range(mask.shape[1]):
            inside = x0 <= x + 0.5 < x1 and y0 <= y + 0.5 < y1
            masked = float(mask[y, x]) > 0.5
            both += inside and masked
            either += inside or masked
            area += masked
            whole += inside
    return both / either - penalty * area / whole


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_largest_value_wins(data: st.DataObject) -> None:
    """Fails with the mask's own bounding box for B, |M| in pixels, λ's sign wrong, or argmin."""
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    count = data.draw(st.integers(1, 4))
    levels = st.lists(st.sampled_from([0.0, 0.5, 0.51, 1.0]), min_size=height * width, max_size=height * width)
    masks = torch.tensor([data.draw(levels) for _ in range(count)]).view(count, height, width)
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = [
        x0 + data.draw(st.sampled_from([0.0, 0.25, 0.75])),
        float(y0),
        data.draw(st.integers(x0 + 1, width)) + 0.0,
        data.draw(st.integers(y0 + 1, height)) + 0.0,
    ]
    assume(any(box[0] <= x + 0.5 < box[2] for x in range(width)))
    penalty = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]))
    expected = [by_hand(mask, box, penalty) for mask in masks]
    best, about = choose(Hypotheses(masks, torch.zeros(count)), box, EQUATION, penalty, index=5)
    assert [one.value for one in about] == pytest.approx(expected)
    assert best == max(range(count), key=lambda number: (round(expected[number], 9), -number))
    assert [one.chosen for one in about] == [number == best for number in range(count)]
    assert {one.index for one in about} == {5} and [one.hypothesis for one in about] == list(range(count))


def test_lambda_decides_between_tight_and_wide() -> None:
    """A mask that fills the box and spills over wins without a penalty, and loses to a smaller one with λ = 1."""
    wide, part = torch.zeros(20, 20), torch.zeros(20, 20)
    wide[3:17, 3:17] = 1
    part[5:15, 5:12] = 1
    found, box = Hypotheses(torch.stack([part, wide]), torch.tensor([0.2, 0.1])), [4.0, 4.0, 16.0, 16.0]
    assert choose(found, box, EQUATION, 0.0)[0] == 1
    assert choose(found, box, EQUATION, 1.0)[0] == 0


def test_terms_do_not_depend_on_resolution() -> None:
    """Twice as many pixels, the same terms; fails if |M| is not counted in boxes."""
    mask = (torch.rand(16, 24, generator=torch.Generator().manual_seed(0)) > 0.4).float()
    twice = mask.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert terms(mask, [3, 2, 20, 11]) == pytest.approx(terms(twice, [6, 4, 40, 22]))


def test_own_score() -> None:
    """The model's own IoU decides, whatever the box says."""
    masks = torch.stack([torch.ones(4, 4), torch.zeros(4, 4)])
    best, about = choose(Hypotheses(masks, torch.tensor([0.3, 0.9])), [0, 0, 4, 4], OWN)
    assert best == 1 and about[1].value == pytest.approx(0.9) and about[0].iou == 1


def test_edges_and_errors() -> None:
    """A box thinner than a pixel or outside still has a pixel; an empty mask has no NaN."""
    assert terms(torch.zeros(3, 3), [1.1, 1.1, 1.2, 1.2]) == (0.0, 0.0)
    assert terms(torch.ones(1, 1), [0, 0, 1, 1]) == (1.0, 1.0)
    assert terms(torch.ones(3, 3), [9, 9, 12, 12]) == pytest.approx((1 / 9, 9.0))
    with pytest.raises(ValueError, match="choice 'best' is unknown"):
        choose(Hypotheses(torch.ones(1, 2, 2), torch.ones(1)), [0, 0, 1, 1], "best")
    with pytest.raises(ValueError, match="no hypothesis"):
        choose(Hypotheses(torch.ones(0, 2, 2), torch.ones(0)), [0, 0, 1, 1])
