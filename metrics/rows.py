"""What a score is, on its way from the node that measured it to the report: one frozen row a figure.

Rows accumulate: a node gives back those that came in, and its own behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        metric: the name in :data:`.registry.METRICS`, e.g. ``clip_t``.
        value: the figure in the metric's own unit; None where there is none to have (a picture without a face), which
            is counted and never taken for 0.
        method: what is compared, e.g. ``base`` or ``LoRA, 400 steps``.
        subject: whom or what the picture shows.
        prompt: that it was asked for with.
        seed: of the picture, or None.
        step: of training, or None.
        picture: its place in the batch, or None of a figure that a whole set has.
        model: the network and its preprocessing, e.g. ``DINOv2 ViT-S/14, 256 bicubic, crop 224``; figures of
            different models must not be pooled.
        note: what the reader must know, e.g. ``no face was found`` or ``48 pictures: biased upwards``.
    """

    metric: str
    value: float | None
    method: str = ""
    subject: str = ""
    prompt: str = ""
    seed: int | None = None
    step: int | None = None
    picture: int | None = None
    model: str = ""
    note: str = ""


Rows = tuple[Row, ...]


def json_safe(rows: Iterable[Row]) -> list[dict[str, object]]:
    """Rows for a program: NaN and infinities, which JSON does not have, become null."""
    found = []
    for row in rows:
        about = asdict(row)
        if row.value is not None and not math.isfinite(row.value):
            about["value"] = None
        found.append(about)
    return found
