"""All pairs: few runs in which every value of every input meets every value of every other.

Most of what goes wrong or right in a grid depends on one or two inputs at a time (Kuhn, Wallace & Gallo 2004, "Software
fault interactions"), so a covering array of strength 2 often tells as much as the whole grid.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, product

Row = tuple[int, ...]
CANDIDATES = 12  # for each row; the one that covers most is taken
_Pair = tuple[int, int, int, int]  # factor, value, later factor, value


def lower_bound(sizes: Sequence[int]) -> int:
    """No array can have fewer rows: the two inputs with most values must meet in all ways. Often not reachable."""
    largest = sorted(sizes, reverse=True)[:2]
    return (largest[0] if largest else 0) * (largest[1] if len(largest) > 1 else 1)


def all_pairs(sizes: Sequence[int], tries: int = 10, seed: int = 0) -> list[Row]:
    """A covering array of strength 2, made greedily, row by row (after AETG: Cohen, Dalal, Fredman & Patton 1997).

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
        missing -= _pairs(row)
    return missing


def _array(sizes: Sequence[int], rng: random.Random) -> list[Row]:
    missing, rows = uncovered([], sizes), list[Row]()
    while missing:
        ordered = sorted(missing)
        candidates = [_candidate(sizes, rng.choice(ordered), missing, rng) for _ in range(CANDIDATES)]
        gains = [len(_pairs(row) & missing) for row in candidates]
        rows.append(candidates[gains.index(max(gains))])
        missing -= _pairs(rows[-1])
    return rows


def _candidate(sizes: Sequence[int], first: _Pair, missing: set[_Pair], rng: random.Random) -> Row:
    """A row that has the pair `first`, and then, factor by factor, the value that adds most missing pairs."""
    one, v, other, w = first
    row = {one: v, other: w}
    for factor in rng.sample(range(len(sizes)), len(sizes)):
        if factor not in row:
            gains = [
                sum(_pair(factor, value, known, row[known]) in missing for known in row)
                for value in range(sizes[factor])
            ]
            row[factor] = rng.choice([value for value, gain in enumerate(gains) if gain == max(gains)])
    return tuple(row[factor] for factor in range(len(sizes)))


def _pairs(row: Sequence[int]) -> set[_Pair]:
    return {(one, row[one], other, row[other]) for one, other in combinations(range(len(row)), 2)}


def _pair(one: int, v: int, other: int, w: int) -> _Pair:
    return (one, v, other, w) if one < other else (other, w, one, v)
