"""Which metrics there are: name -> function, range, direction. A new metric is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from .similarity import nearest_similarity, subject_similarity


@dataclass(frozen=True)
class Metric:
    """`function` returns a float in `range` (both ends included); `direction` says which way is better."""

    function: Callable[..., float]
    range: tuple[float, float]
    direction: Literal["higher", "lower"]
    summary: str


METRICS: dict[str, Metric] = {
    "subject_similarity": Metric(
        subject_similarity, (-1.0, 1.0), "higher", "mean cosine of generated to reference pictures"
    ),
    "nearest_similarity": Metric(
        nearest_similarity, (-1.0, 1.0), "higher", "mean cosine of generated pictures to the nearest reference"
    ),
}
