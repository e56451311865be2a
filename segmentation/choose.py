"""Which of a segmenter's hypotheses is the object in the box.

Image-Alchemy, Eq. 3: M* = argmax(IoU(M_i, B) − λ|M_i|). In pixels no λ would do for two sizes of picture, so |M| is
counted in boxes: |M| / |B|.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .found import Candidate, Hypotheses

EQUATION, OWN = RULES = ("box fit (Eq. 3)", "model's own score")
LAMBDA = 0.1


def box_pixels(box: Sequence[float], height: int, width: int) -> tuple[slice, slice]:
    """(rows, columns) of the pixels whose centres lie in the box; at least one, so that a thin box is not lost."""

    def span(low: float, high: float, size: int) -> slice:
        first = min(max(math.ceil(low - 0.5), 0), size - 1)
        return slice(first, min(max(math.ceil(high - 0.5), first + 1), size))

    x0, y0, x1, y1 = box
    return span(y0, y1, height), span(x0, x1, width)


def terms(mask: Tensor, box: Sequence[float]) -> tuple[float, float]:
    """(IoU(M, B), |M| / |B|) of a mask (H, W), inside above ½, and a box x₀ y₀ x₁ y₁ in pixels, filled."""
    rows, columns = box_pixels(box, *mask.shape)
    inside = mask > 0.5
    area = int(torch.count_nonzero(inside))  # many times as fast as sum
    shared = int(torch.count_nonzero(inside[rows, columns]))
    whole = (rows.stop - rows.start) * (columns.stop - columns.start)
    return shared / (area + whole - shared), area / whole


def choose(
    found: Hypotheses, box: Sequence[float], rule: str = EQUATION, penalty: float = LAMBDA, index: int = 0
) -> tuple[int, tuple[Candidate, ...]]:
    """(the hypothesis with the largest value, all of them with their terms); the first of equals.

    Args:
        box: x₀ y₀ x₁ y₁ in pixels.
        rule: one of :data:`RULES`.
        penalty: λ of Eq. 3: what a box's area of mask costs.
        index: of the object, for the candidates.

    Raises:
        ValueError: an unknown rule, or no hypotheses.
    """
    if rule not in RULES:
        raise ValueError(f"the choice {rule!r} is unknown; expected one of: {', '.join(RULES)}")
    if not len(found.masks):
        raise ValueError("the segmenter gave no hypothesis for a box; it must give at least one mask (K, H, W)")
    measured = [terms(mask, box) for mask in found.masks]
    own = [float(score) for score in found.own]
    values = own if rule == OWN else [iou - penalty * area for iou, area in measured]
    best = max(range(len(values)), key=lambda number: values[number])
    return best, tuple(
        Candidate(index, number, iou, area, own[number], values[number], number == best)
        for number, (iou, area) in enumerate(measured)
    )
