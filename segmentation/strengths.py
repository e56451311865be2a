"""How strong a LoRA is in which part of the sampling, from a line of text."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"\s*([\d.]+)\s*[-–]\s*([\d.]+)\s*:\s*([+-]?[\d.]+)\s*")


@dataclass(frozen=True)
class Range:
    """`strength` from the share `start` of the steps to `end`, both in [0, 1]."""

    start: float
    end: float
    strength: float


def read_ranges(text: str) -> tuple[Range, ...]:
    """`0-0.3: 0.5, 0.3-1: 1` -> ranges in order, without gaps: what is not named is 1. Empty: none.

    Raises:
        ValueError: names the part that is no range, or the two that overlap.
    """
    given = []
    for part in (part for part in text.replace("\n", ",").split(",") if part.strip()):
        found = _RANGE.fullmatch(part)
        try:
            start, end, strength = (float(number) for number in found.groups()) if found else (1.0, 0.0, 0.0)
        except ValueError:
            start, end, strength = 1.0, 0.0, 0.0
        if not 0 <= start < end <= 1:
            raise ValueError(
                f"{part.strip()!r} is no range of the sampling; write shares of the steps and a strength, such as "
                "0-0.3: 0.5, 0.3-1: 1"
            )
        given.append(Range(start, end, strength))
    given.sort(key=lambda each: each.start)
    whole: list[Range] = []
    at = 0.0
    for each in given:
        if each.start < at:
            raise ValueError(f"the ranges {whole[-1]} and {each} overlap; each step can have one strength only")
        if each.start > at:
            whole.append(Range(at, each.start, 1.0))
        whole.append(each)
        at = each.end
    if given and at < 1:
        whole.append(Range(at, 1.0, 1.0))
    return tuple(whole)


def first_steps(ranges: tuple[Range, ...], steps: int) -> list[tuple[int, float]]:
    """(step from 0, strength from there on) of a sampling of `steps`; ranges that meet no step are left out."""
    found: dict[int, float] = {}
    for each in ranges:
        found[round(each.start * steps)] = each.strength
    return [(step, strength) for step, strength in sorted(found.items()) if step < steps]
