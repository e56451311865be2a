"""Means with their uncertainty, over repeats that are not all independent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

CONFIDENCE = 0.95


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
            them), or "bootstrap", the percentiles of 10,000 resampled means (no such assumption, but too narrow for
            fewer than about ten values).
        seed: of the bootstrap.

    Raises:
        ValueError: there is no value, or one is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"a mean needs finite values in one list, got {values!r}")
    mean = float(x.mean())
    if x.size == 1:
        return Estimate(mean, math.nan, math.nan, math.nan, 1)
    error = float(x.std(ddof=1) / math.sqrt(x.size))
    if interval == "bootstrap":
        picked = np.random.default_rng(seed).integers(x.size, size=(10_000, x.size))
        low, high = np.quantile(x[picked].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return Estimate(mean, error, float(low), float(high), x.size)
    from scipy import stats  # here, because it takes a second

    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, x.size - 1)) * error
    return Estimate(mean, error, mean - reach, mean + reach, x.size)


def by_unit(values: Sequence[float], units: Sequence[Hashable]) -> dict[Hashable, float]:
    """Mean of each unit's values. Two seeds of one subject are not two subjects: average them first."""
    gathered: dict[Hashable, list[float]] = {}
    for value, unit in zip(values, units, strict=True):
        gathered.setdefault(unit, []).append(value)
    return {unit: sum(found) / len(found) for unit, found in gathered.items()}


def difference(one: dict[Hashable, float], other: dict[Hashable, float], interval: str = "t") -> Estimate:
    """one − other, unit by unit (paired), over the units that both have.

    Raises:
        ValueError: they have no unit in common.
    """
    shared = [unit for unit in one if unit in other]
    if not shared:
        raise ValueError("the two have no unit (subject, seed) in common, so that nothing can be paired")
    return estimate([one[unit] - other[unit] for unit in shared], interval)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats in both coordinates (higher is better), by rising x.

    A point is beaten by one that is at least as good in both and better in one.
    """

    def beaten(x: float, y: float) -> bool:
        return any(a >= x and b >= y and (a > x or b > y) for a, b in points)

    front = [index for index, (x, y) in enumerate(points) if not beaten(x, y)]
    return sorted(front, key=lambda index: points[index])
