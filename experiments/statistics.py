"""Means with their uncertainty, over repeats that are not all independent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

CONFIDENCE = 0.95
RESAMPLES = 10_000
INTERVALS = ("t", "bootstrap", "bca")

Unit = TypeVar("Unit", bound=Hashable)
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean, its standard error, and the interval that holds the true mean with 95% confidence.

    `units`: how many independent values it is of; with one, there is no error and no interval (NaN).
    """

    mean: float
    error: float
    low: float
    high: float
    units: int


def estimate(values: ArrayLike, interval: str = "t", seed: int = 0) -> Estimate:
    """Mean of independent values (N,).

    Args:
        interval: "t", Student's with N − 1 degrees of freedom (right for values that are near normal, also for few of
            them); "bootstrap", the percentiles of 10,000 resampled means (no such assumption, but too narrow for
            fewer than about ten values); or "bca", those percentiles corrected for bias and skew (Efron 1987).
        seed: of the bootstrap.

    Raises:
        ValueError: there is no value, one is not finite, or there is no such interval.
    """
    if interval not in INTERVALS:
        raise ValueError(f"there is no interval {interval!r}; there are {', '.join(INTERVALS)}")
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"a mean needs finite values in one list, got {values!r}")
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    error = float(x.std(ddof=1) / math.sqrt(x.size))
    if interval in ("bootstrap", "bca"):
        means = _resampled_means(x, seed)
        shares = np.asarray([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        low, high = np.quantile(means, shares if interval == "bootstrap" else _corrected(shares, x, means))
        return Estimate(mean, error, float(low), float(high), x.size)
    from scipy import stats  # here, because it takes a second

    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, x.size - 1)) * error
    return Estimate(mean, error, mean - reach, mean + reach, x.size)


def _resampled_means(x: FloatArray, seed: int) -> FloatArray:
    """Means of 10,000 samples of x's length, drawn from x with replacement; a part at a time, for x may be long."""
    chance = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // x.size)
    parts = [
        x[chance.integers(x.size, size=(min(rows, RESAMPLES - first), x.size))].mean(axis=1)
        for first in range(0, RESAMPLES, rows)
    ]
    return np.concatenate(parts)


def _corrected(shares: FloatArray, x: FloatArray, means: FloatArray) -> FloatArray:
    """Which percentiles BCa takes in place of `shares` (Efron 1987, "Better bootstrap confidence intervals", eq. 3.9).

    z0 says how far the resampled means' middle lies from the mean; a, from the jackknife, how their spread changes
    with it. Where all values are alike there is nothing to correct.
    """
    from scipy.special import ndtr, ndtri  # here, because it takes a moment

    below = (np.count_nonzero(means < x.mean()) + np.count_nonzero(means <= x.mean())) / (2 * means.size)
    apart = x - x.mean()  # the jackknife's means differ from theirs by −1/(N − 1) of this
    spread = float(np.square(apart).sum())
    if spread <= 0 or not 0 < below < 1:
        return shares
    z0, a = float(ndtri(below)), float((apart**3).sum()) / (6 * spread**1.5)
    z = z0 + ndtri(shares)
    found: FloatArray = ndtr(z0 + z / (1 - a * z))
    return found


def by_unit(values: Sequence[float], units: Sequence[Hashable]) -> dict[Hashable, float]:
    """Mean of each unit's values. Two seeds of one subject are not two subjects: average them first."""
    gathered: dict[Hashable, list[float]] = {}
    for value, unit in zip(values, units, strict=True):
        gathered.setdefault(unit, []).append(value)
    return {unit: sum(found) / len(found) for unit, found in gathered.items()}


def difference(
    one: Mapping[Unit, float], other: Mapping[Unit, float], interval: str = "t", *, seed: int = 0
) -> Estimate:
    """one − other, unit by unit (paired), over the units that both have.

    Raises:
        ValueError: they have no unit in common.
    """
    shared = [unit for unit in one if unit in other]
    if not shared:
        raise ValueError("the two have no unit (subject, seed) in common, so that nothing can be paired")
    return estimate([one[unit] - other[unit] for unit in shared], interval, seed)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats in both coordinates (higher is better), by rising x.

    A point is beaten by one that is at least as good in both and better in one.
    """

    def beaten(x: float, y: float) -> bool:
        return any(a >= x and b >= y and (a > x or b > y) for a, b in points)

    front = [index for index, (x, y) in enumerate(points) if not beaten(x, y)]
    return sorted(front, key=lambda index: points[index])
