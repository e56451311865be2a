"""Boxes that others found, as text or as the host's BOUNDING_BOX, for each frame of a batch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from .found import Boxes, Objects

FORMS = (
    "a list of [x0, y0, x1, y1] in pixels, or of objects with box (or x, y, width, height), score and label; "
    "for several frames a list of such lists"
)


def read_boxes(given: Any, frames: int, label: str = "") -> list[Boxes]:
    """What another detector gave -> one :class:`.found.Boxes` a frame.

    Args:
        given: JSON text, or what it would hold: a box; a list of boxes, used for every frame; a list of lists, one a
            frame; or this pack's own report, ``{"frames": [{"objects": [...]}]}``. A box is ``[x0, y0, x1, y1]``,
            ``[x0, y0, x1, y1, score]`` or a mapping with ``box``, or ``x, y, width, height``.
        frames: of the batch.
        label: of boxes without one.

    Raises:
        ValueError: no such thing, or lists for another number of frames.
    """
    if isinstance(given, str):
        try:
            given = json.loads(given) if given.strip() else []
        except ValueError as error:
            raise ValueError(f"the boxes are no JSON ({error}); expected {FORMS}") from None
    if isinstance(given, Mapping) and "frames" in given:
        given = [frame.get("objects", []) if isinstance(frame, Mapping) else frame for frame in given["frames"]]
    elif isinstance(given, Mapping) and "boxes" in given:
        given = given["boxes"]
    if isinstance(given, torch.Tensor):
        given = given.tolist()
    if _is_box(given):
        given = [given]
    if not isinstance(given, (list, tuple)):
        raise ValueError(f"boxes were given as {type(given).__name__}; expected {FORMS}")
    nested = bool(given) and all(isinstance(part, (list, tuple)) and not _is_box(part) for part in given)
    if not nested:
        return [_boxes(given, label)] * frames
    if len(given) == 1:
        return [_boxes(given[0], label)] * frames
    if len(given) != frames:
        raise ValueError(f"boxes were given for {len(given)} frames, but the batch has {frames}")
    return [_boxes(part, label) for part in given]


def to_bounding_boxes(found: list[Objects]) -> list[list[dict[str, Any]]]:
    """As the host's BOUNDING_BOX travels: a list a frame, of x, y, width and height in whole pixels, score, label."""
    return [
        [
            {
                "x": round(x0),
                "y": round(y0),
                "width": max(1, round(x1) - round(x0)),
                "height": max(1, round(y1) - round(y0)),
                "label": label,
                "score": score,
            }
            for (x0, y0, x1, y1), label, score in zip(
                objects.boxes.tolist(), objects.labels, objects.scores.tolist(), strict=True
            )
        ]
        for objects in found
    ]


def _is_box(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "box" in value or "x" in value
    numbers = isinstance(value, (list, tuple)) and len(value) in (4, 5)
    return numbers and all(isinstance(part, (int, float)) and not isinstance(part, bool) for part in value)


def _boxes(given: Any, label: str) -> Boxes:
    rows = [_box(one, label) for one in given]
    if not rows:
        return Boxes.none()
    return Boxes(
        torch.tensor([row[0] for row in rows], dtype=torch.float32),
        torch.tensor([row[1] for row in rows], dtype=torch.float32),
        tuple(row[2] for row in rows),
    )


def _box(one: Any, label: str) -> tuple[list[float], float, str]:
    if not _is_box(one):
        raise ValueError(f"{str(one)[:100]!r} is no box; expected {FORMS}")
    try:
        if not isinstance(one, Mapping):
            return [float(part) for part in one[:4]], float(one[4]) if len(one) == 5 else 1.0, label
        if "box" in one:
            corners = [float(part) for part in one["box"]]
        else:
            x, y = float(one["x"]), float(one["y"])
            corners = [x, y, x + float(one["width"]), y + float(one["height"])]
        if len(corners) != 4:
            raise ValueError(f"{len(corners)} numbers")
        return corners, float(one.get("score", 1.0)), str(one.get("label") or label)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(one)[:100]!r} is no box ({error}); expected {FORMS}") from None
