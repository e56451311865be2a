"""Is one method better than another? Paired tests, for the same subject, prompt and seed were asked of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..metrics.rows import Row
from .statistics import FloatArray, by_unit, difference

FEW = 2
"""Fewer pairs than this cannot be tested."""


@dataclass(frozen=True)
class Comparison:
    """Two methods on one metric.

    Attributes:
        metric, model: the column.
        one, other: labels of the methods.
        mean, low, high: of one − other, over pairs, with its 95% interval.
        pairs: so many units have both.
        p_t: of the paired t test, two-sided; None where the differences are all alike.
        p_wilcoxon: of Wilcoxon's signed-rank test, two-sided; None likewise, except that all 0 is 1.
        holm_t, holm_wilcoxon: the same after Holm's correction over all comparisons of the report.
    """

    metric: str
    model: str
    one: str
    other: str
    mean: float
    low: float
    high: float
    pairs: int
    p_t: float | None
    p_wilcoxon: float | None
    holm_t: float | None = None
    holm_wilcoxon: float | None = None


Found = tuple[float, float, float, int, float | None, float | None]


def compare_pairs(
    one: Sequence[Row], other: Sequence[Row], *, by_subject: bool, interval: str = "bootstrap", seed: int = 0
) -> Found | None:
    """(mean, low, high, pairs, p of t, p of Wilcoxon) of one − other, or None with fewer than two pairs.

    A pair has the same subject, prompt and seed; the picture's number counts too where those three do not tell the rows
    of a method apart. N/A on one side takes the pair out.

    Args:
        by_subject: a subject's differences are averaged first: subjects are the units.
    """
    told_apart = all(len({_asked(row) for row in rows}) == len(rows) for rows in (one, other))
    left, right = _shared(one, other, _asked if told_apart else _whole_key)
    if by_subject:
        left, right = _by_subject(left), _by_subject(right)
    if len(left) < FEW:
        return None
    gap = difference(left, right, interval, seed=seed)
    apart = np.asarray([left[unit] - right[unit] for unit in left], dtype=np.float64)
    return (gap.mean, gap.low, gap.high, len(left), *paired_p(apart))


def paired_p(apart: FloatArray) -> tuple[float | None, float | None]:
    """Two-sided p of the paired t test and of Wilcoxon's signed-rank test for differences (N,), N > 1, by scipy.

    Where all differences are alike, there is no spread to test against: (None, None), and (None, 1.0) if they are 0.
    """
    from scipy import stats  # here, because it takes a second

    if not np.any(apart):
        return None, 1.0
    if float(np.ptp(apart)) <= 1e-12 * float(np.abs(apart).max()):
        return None, None
    return float(stats.ttest_1samp(apart, 0.0).pvalue), float(stats.wilcoxon(apart).pvalue)


def holm_adjusted(values: Sequence[float]) -> list[float]:
    """p values -> Holm's (1979) step-down adjusted ones, in the same order; at most 1."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    found, highest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(values) - rank) * values[place]))
        found[place] = highest
    return found


def holm(tests: Sequence[Comparison]) -> list[Comparison]:
    """Both p values corrected, each over all comparisons that have one."""
    found = list(tests)
    for raw, corrected in (("p_t", "holm_t"), ("p_wilcoxon", "holm_wilcoxon")):
        places = [place for place, test in enumerate(found) if getattr(test, raw) is not None]
        adjusted = holm_adjusted([float(getattr(found[place], raw)) for place in places])
        for place, value in zip(places, adjusted, strict=True):
            found[place] = replace(found[place], **{corrected: value})  # type: ignore[arg-type]
    return found


Key = tuple[Hashable, ...]


def _whole_key(row: Row) -> Key:
    return (row.subject, row.prompt, row.seed, row.picture)


def _asked(row: Row) -> Key:
    return (row.subject, row.prompt, row.seed)


def _shared(
    one: Sequence[Row], other: Sequence[Row], key: Callable[[Row], Key]
) -> tuple[dict[Key, float], dict[Key, float]]:
    """Values by key, of the keys that both have, in the first one's order; rows of one key are averaged."""
    left, right = _values(one, key), _values(other, key)
    shared = [found for found in left if found in right]
    return {found: left[found] for found in shared}, {found: right[found] for found in shared}


def _by_subject(values: dict[Key, float]) -> dict[Key, float]:
    return {(subject,): mean for subject, mean in by_unit(list(values.values()), [key[0] for key in values]).items()}


def _values(rows: Sequence[Row], key: Callable[[Row], Key]) -> dict[Key, float]:
    gathered: dict[Key, list[float]] = {}
    for row in rows:
        if row.value is not None and math.isfinite(row.value):
            gathered.setdefault(key(row), []).append(float(row.value))
    return {found: sum(values) / len(values) for found, values in gathered.items()}
