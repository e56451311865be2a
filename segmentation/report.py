"""What was found in each frame, for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from .found import Candidate, Objects
from .grounded import FindOptions

CANDIDATE = ("hypothesis", "iou", "area", "own", "value", "chosen")


def report_json(found: Sequence[Objects], options: FindOptions, about: dict[str, Any]) -> str:
    """All objects, with the row of the object masks that each is in, and every candidate's terms."""
    frames, row = [], 0
    for number, objects in enumerate(found):
        listed = []
        for index in range(len(objects)):
            listed.append(
                {
                    "mask": row,
                    "label": objects.labels[index],
                    "score": _short(float(objects.scores[index])),
                    "box": [_short(value) for value in objects.boxes[index].tolist()],
                    "pixels": int(torch.count_nonzero(objects.masks[index] > 0.5)),
                    "candidates": [
                        {name: _short(getattr(one, name)) for name in CANDIDATE}
                        for one in objects.candidates
                        if one.index == index
                    ],
                }
            )
            row += 1
        frames.append({"frame": number, "objects": listed})
    options_used = {
        name: getattr(options, name) for name in ("box_threshold", "text_threshold", "most", "overlap", "rule")
    }
    return json.dumps({**about, "options": {**options_used, "lambda": options.penalty}, "frames": frames}, indent=1)


def report_markdown(found: Sequence[Objects], options: FindOptions, about: dict[str, Any]) -> str:
    """A row an object; below it every candidate with the terms of its choice."""
    total = sum(len(objects) for objects in found)
    empty = [number for number, objects in enumerate(found) if not len(objects)]
    lines = [
        f"**{total} object{'s' * (total != 1)} in {len(found)} frame{'s' * (len(found) != 1)}**"
        + (f"; nothing in frame {', '.join(map(str, empty))} (their masks are empty)" if empty else ""),
        "",
        *(f"- {name}: {value}" for name, value in about.items() if value not in ("", [])),
        f"- box threshold {options.box_threshold:g}, text threshold {options.text_threshold:g}, at most "
        f"{options.most} objects, duplicates above IoU {options.overlap:g} dropped",
        "",
    ]
    if not total:
        lines += ["Try a lower box threshold, or another word for what is in the picture.", ""]
        return "\n".join(lines)
    lines += [
        "| frame | object mask | label | score | box (x0 y0 x1 y1) | part of the picture |",
        "|---:|---:|---|---:|---|---:|",
    ]
    row = 0
    for number, objects in enumerate(found):
        for index in range(len(objects)):
            mask = objects.masks[index]
            box = " ".join(f"{value:.0f}" for value in objects.boxes[index].tolist())
            part = int(torch.count_nonzero(mask > 0.5)) / mask.numel()
            label = objects.labels[index].replace("|", "\\|").replace("\n", " ")
            lines.append(f"| {number} | {row} | {label} | {float(objects.scores[index]):.3f} | {box} | {part:.1%} |")
            row += 1
    if any(objects.candidates for objects in found):
        lines += ["", *_candidates(found, options)]
    return "\n".join([*lines, ""])


def _candidates(found: Sequence[Objects], options: FindOptions) -> list[str]:
    lines = [
        f"Choice: {options.rule}"
        + (f", value = IoU(M, B) − {options.penalty:g} · area" if options.rule.startswith("box") else ""),
        "",
        "| object mask | hypothesis | IoU(M, B) | area, in boxes | model's own score | value | |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    row = 0
    for objects in found:
        for one in objects.candidates:
            lines.append(_line(row + one.index, one))
        row += len(objects)
    return lines


def _line(row: int, one: Candidate) -> str:
    return (
        f"| {row} | {one.hypothesis} | {one.iou:.3f} | {one.area:.3f} | {one.own:.3f} | {one.value:.3f} "
        f"| {'chosen' if one.chosen else ''} |"
    )


def _short(value: Any) -> Any:
    return round(value, 5) if isinstance(value, float) else value
