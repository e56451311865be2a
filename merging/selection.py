"""Which files are merged, and with what weights, out of what a user writes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase


def parse_weights(text: str, count: int) -> tuple[float, ...]:
    """One weight for each of `count` LoRAs out of ``1 0.8 -0.3``; one number is for all of them, none is 1.

    Between numbers stand spaces, commas, semicolons or line breaks.
    Raises ValueError naming what is no finite number, or how many there are and how many are expected.
    """
    words = text.replace(",", " ").replace(";", " ").split()
    weights = []
    for word in words:
        if (weight := _number(word)) is None:
            raise ValueError(f"{word!r} in the weights is no finite number; expected numbers such as 1 0.8 -0.3")
        weights.append(weight)
    if len(weights) not in (0, 1, count):
        raise ValueError(
            f"there are {len(weights)} weights for {count} LoRAs; expected one for all, or one for each, written with "
            "a point: 1 0.8 -0.3"
        )
    return tuple(weights) if len(weights) == count else (weights[0] if weights else 1.0,) * count


def select_files(text: str, names: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """(name, weight) of every file chosen, in the order of the lines and within a line of `names`.

    text: a line each: a file (its ending may be left out), a folder (all below it), or a pattern with * and ?; after it
    a weight, 1 where none is written. A file that an earlier line chose is not chosen again: ``style/ink 0.6`` and then
    ``style/*`` takes ink with 0.6 and the others with 1. Empty lines, and those that begin with ``#``, say nothing.
    names: the files there are, relative to the folder of LoRAs.
    Raises ValueError naming the line that chooses nothing, and files of similar names.
    """
    chosen: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        found, weight = _matching(line, names), 1.0
        if not found and len(parts := line.rsplit(None, 1)) == 2 and (last := _number(parts[1])) is not None:
            line, weight = parts[0], last
            found = _matching(line, names)
        if not found:
            near = difflib.get_close_matches(line, [_plain(name) for name in names], 3, 0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"there are {len(names)} LoRAs in it"
            raise ValueError(
                f"line {number} of the files: {line!r} is no LoRA in the host's folder of LoRAs, and no folder or "
                f"pattern that finds one there; {hint}"
            )
        for name in found:
            chosen.setdefault(name, weight)
    return tuple(chosen.items())


def _number(word: str) -> float | None:
    try:
        number = float(word)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _plain(name: str) -> str:
    return name.replace("\\", "/")


def _matching(what: str, names: Sequence[str]) -> list[str]:
    """The file of that name; else those in the folder of that name; else those that the pattern finds."""
    what = _plain(what).removeprefix("./")
    if exact := [name for name in names if _plain(name) == what]:
        return exact
    if stem := [name for name in names if _plain(name).rpartition(".")[0] == what]:
        return stem[:1]
    folder = what.rstrip("/") + "/"
    if below := [name for name in names if what in ("", ".") or _plain(name).startswith(folder)]:
        return below
    return [name for name in names if fnmatchcase(_plain(name), what)]
