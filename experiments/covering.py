"""All pairs: few runs in which every value of every input meets every value of every other.

Most of what goes wrong or right in a grid depends on one or two inputs at a time (Kuhn, Wallace & Gallo 2004, "Software
fault interactions"), so a covering array of strength 2 often tells as much as the whole grid.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, product

Row = tuple[int, ...]
_Pair = tuple[int, int, int, int]  # factor, value, later factor, value


def lower_bound(sizes: Sequence[int]) -> int:
    """No array can have fewer rows: the two inputs with most values must meet in all ways. Often not reachable."""
    largest = sorted(sizes, reverse=True)[:2]
    return (largest[0] if largest else 0) * (largest[1] if len(largest) > 1 else 1)


def all_pairs(sizes: Sequence[int], tries: int = 40, seed: int = 0) -> list[Row]:
    """A covering array of strength 2, made greedily, one factor after the other (after IPO: Lei & Tai 1998).

    Args:
        sizes: how many values each factor has, each at least 1.
        tries: so many times with ties broken otherwise; the smallest array is taken.
        seed: decides how ties are broken; the same arguments give the same array.

    Returns:
        Rows of value indices, one a factor: for any two factors, each pair of their values is in some row.

    Raises:
        ValueError: no factor, or one without values.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"all pairs of what? Each input needs at least one value; got {list(sizes)} values")
    if len(sizes) == 1:
        return [(value,) for value in range(sizes[0])]
    best: list[Row] = []
    for turn in range(tries):
        rows = _array(sizes, random.Random(f"{seed} {turn}"))
        if not best or len(rows) < len(best):
            best = rows
        if len(best) == lower_bound(sizes):
            break
    return sorted(best)


def uncovered(rows: Sequence[Sequence[int]], sizes: Sequence[int]) -> set[_Pair]:
    """The pairs (factor, its value, later factor, its value) that no row has."""
    missing = {
        (one, v, other, w)
        for one, other in combinations(range(len(sizes)), 2)
        for v, w in product(range(sizes[one]), range(sizes[other]))
    }
    for row in rows:
        missing -= {(one, row[one], other, row[other]) for one, other in combinations(range(len(sizes)), 2)}
    return missing


def _array(sizes: Sequence[int], rng: random.Random) -> list[Row]:
    order = sorted(range(len(sizes)), key=lambda factor: (-sizes[factor], rng.random()))
    rows: list[list[int | None]] = [list(pair) for pair in product(range(sizes[order[0]]), range(sizes[order[1]]))]
    rng.shuffle(rows)
    for place in range(2, len(order)):
        _add_factor(rows, [sizes[factor] for factor in order[: place + 1]], rng)
    finished = []
    for row in rows:
        values = [0] * len(sizes)
        for place, factor in enumerate(order):
            value = row[place]
            values[factor] = rng.randrange(sizes[factor]) if value is None else value
        finished.append(tuple(values))
    return finished


def _add_factor(rows: list[list[int | None]], sizes: Sequence[int], rng: random.Random) -> None:
    """Give each row a value of one more factor, the last of `sizes`; add rows for the pairs that are still missing."""
    last = len(sizes) - 1
    missing = {(place, v, w) for place in range(last) for v in range(sizes[place]) for w in range(sizes[last])}
    used = [0] * sizes[last]
    for row in rows:

        def gain(w: int, row: list[int | None] = row) -> tuple[int, int, float]:
            new = sum((place, row[place], w) in missing for place in range(last))  # noqa: B023, used in this turn only
            return new, -used[w], rng.random()

        chosen = max(range(sizes[last]), key=gain)
        used[chosen] += 1
        missing -= {(place, value, chosen) for place, value in enumerate(row) if value is not None}
        row.append(chosen)
    added: list[list[int | None]] = []
    for place, v, w in sorted(missing):
        fitting = [row for row in added if row[last] == w and row[place] is None]
        if fitting:
            fitting[0][place] = v
        else:
            fresh: list[int | None] = [None] * (last + 1)
            fresh[place], fresh[last] = v, w
            added.append(fresh)
    rows += added
