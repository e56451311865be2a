"""Pieces of a mask against a flood fill by hand."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.segmentation.components import components, objects_of_mask


def flood(mask: torch.Tensor) -> list[set[tuple[int, int]]]:
    """Pieces by walking to the eight neighbours, one pixel after the other."""
    left = {(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x] > 0.5}
    pieces = []
    while left:
        ahead, piece = [left.pop()], set()
        while ahead:
            y, x = ahead.pop()
            piece.add((y, x))
            for near in ((y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
                if near in left:
                    left.remove(near)
                    ahead.append(near)
        pieces.append(piece)
    return pieces


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_pieces(height: int, width: int, data: st.DataObject) -> None:
    """The same pixels, boxes and means; fails with four neighbours, boxes short by one, or pieces joined."""
    levels = st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), min_size=height * width, max_size=height * width)
    mask = torch.tensor(data.draw(levels)).view(height, width)
    boxes, masks = components(mask, smallest=0)
    expected = flood(mask)
    found = [{(int(y), int(x)) for y, x in piece.nonzero()} for piece in masks]
    assert sorted(map(sorted, found)) == sorted(map(sorted, expected))
    assert [len(piece) for piece in found] == sorted(map(len, expected), reverse=True)
    for piece, box, score in zip(found, boxes.boxes.tolist(), boxes.scores.tolist(), strict=True):
        ys, xs = zip(*piece, strict=True)
        assert box == [min(xs), min(ys), max(xs) + 1, max(ys) + 1]
        assert abs(score - sum(float(mask[place]) for place in piece) / len(piece)) < 1e-6
    objects = objects_of_mask(mask, "x")
    assert torch.equal(objects.union, torch.where(mask > 0.5, mask, 0.0))


def test_crumbs_and_most() -> None:
    """Small pieces are left out, and the largest are kept where there are too many."""
    mask = torch.zeros(100, 100)
    mask[0, 0], mask[10:20, 10:20], mask[50:90, 50:90] = 1, 1, 1
    assert len(components(mask)[0]) == 2
    assert components(mask, most=1)[0].boxes.tolist() == [[50, 50, 90, 90]]
    assert len(components(mask, smallest=0)[0]) == 3
    assert len(components(torch.zeros(4, 4))[0]) == 0 and len(objects_of_mask(torch.zeros(4, 4))) == 0
