"""What a figure means to a reader: which way is better, in which unit, and of what it is.

Scores are described by :data:`.registry.METRICS`. Costs, which stand beside the scores and are no property of a
picture, and figures of a metric itself are described here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .registry import METRICS


@dataclass(frozen=True)
class Meaning:
    """How to read a metric.

    Attributes:
        direction: which way is better; empty of a metric that nobody registered.
        unit: in words, e.g. ``seconds`` or ``−1 to 1``; empty where it is not known.
        summary: what it measures, in one line.
        cost: it is a price and no score: never averaged over subjects, tested or drawn against a score.
    """

    direction: Literal["higher", "lower", ""]
    unit: str
    summary: str
    cost: bool = False

    @property
    def arrow(self) -> str:
        """↑ where more is better, ↓ where less is, nothing where that is not known."""
        return {"higher": "↑", "lower": "↓", "": ""}[self.direction]


COSTS: dict[str, Meaning] = {
    "seconds_a_picture": Meaning(
        "lower", "seconds", "time of one picture, sampling and decoding, warm-up left out", True
    ),
    "trained_parameters": Meaning("lower", "numbers", "numbers that were trained", True),
    "file_size": Meaning("lower", "MB", "size of the LoRA's tensors, 10⁶ bytes; its header is not counted", True),
}

SEPARATIONS: dict[str, Meaning] = {
    "separation_auc": Meaning(
        "higher", "0 to 1", "how often the subject scores higher than another picture; .5 is chance"
    ),
    "separation_d": Meaning(
        "higher", "deviations", "difference of the two sets' mean scores in their common deviation"
    ),
}


def meaning(metric: str) -> Meaning:
    """How to read a metric; one that is not registered has no direction."""
    if metric in COSTS or metric in SEPARATIONS:
        return (COSTS | SEPARATIONS)[metric]
    if metric not in METRICS:
        return Meaning("", "", "not registered: no direction is known")
    known = METRICS[metric]
    low, high = known.range
    if math.isfinite(low) and math.isfinite(high):
        unit = f"{low:g} to {high:g}".replace("-", "−")
    elif math.isfinite(low):
        unit = f"from {low:g}".replace("-", "−")
    else:
        unit = "any number"
    return Meaning(known.direction, getattr(known, "unit", "") or unit, known.summary)
