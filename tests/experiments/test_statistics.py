"""Means and intervals, against scipy and hand counts; the front, against its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from likeness.experiments.statistics import by_unit, difference, estimate, pareto_front


def test_the_t_interval_is_scipys() -> None:
    """Fails with N in place of N − 1, a one-sided quantile, or the deviation in place of the standard error."""
    values = [0.61, 0.7, 0.66, 0.72, 0.58]
    got = estimate(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert (got.mean, got.error) == pytest.approx((np.mean(values), stats.sem(values)))
    assert (got.low, got.high) == pytest.approx((low, high))


def test_the_bootstrap_is_near_scipys() -> None:
    """Fails if it resamples without replacement (no width at all), or cuts at other percentiles."""
    values = np.random.default_rng(0).normal(3, 1, 40)
    got = estimate(values, "bootstrap")
    want = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=9999, random_state=1)
    assert (got.low, got.high) == pytest.approx(want.confidence_interval, abs=0.02)


@pytest.mark.parametrize("values", [np.random.default_rng(1).exponential(1.0, 25), [1.0, 2.0, 2.0, 9.0, 30.0]])
def test_the_corrected_bootstrap_is_near_scipys(values: object) -> None:
    """Fails if the bias or the skew is corrected with the wrong sign: on skewed values that moves both ends."""
    x = np.asarray(values, dtype=float)
    got, plain = estimate(x, "bca"), estimate(x, "bootstrap")
    want = stats.bootstrap((x,), np.mean, method="BCa", n_resamples=20_000, random_state=1).confidence_interval
    scale = want.high - want.low
    assert (got.low, got.high) == pytest.approx(tuple(want), abs=0.04 * scale)
    assert got.low > plain.low and got.high > plain.high + 0.05 * scale, "no correction at all would pass"


def test_the_bootstrap_repeats_and_a_constant_has_no_width() -> None:
    """Fails if the seed is not heeded, or alike values give NaN."""
    values = np.random.default_rng(0).normal(size=300)  # long enough to be resampled in several parts
    assert estimate(values, "bca", seed=3) == estimate(values, "bca", seed=3) != estimate(values, "bca", seed=4)
    got = estimate([0.5] * 6, "bca")
    assert (got.low, got.high, got.error) == (0.5, 0.5, 0.0)
    with pytest.raises(ValueError, match="no interval 'normal'"):
        estimate([1.0, 2.0], "normal")


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    """Fails if a single run is shown with an error of zero, as if it were certain."""
    got = estimate([2.0])
    assert got.mean == 2.0 and math.isnan(got.error) and math.isnan(got.low) and got.units == 1
    for wrong in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite values"):
            estimate(wrong)


def test_seeds_of_a_subject_are_one_unit_and_differences_are_paired() -> None:
    """Fails if four runs of two subjects count as four, or two methods are compared across subjects."""
    one = by_unit([1.0, 3.0, 10.0, 12.0], ["a", "a", "b", "b"])
    assert one == {"a": 2.0, "b": 11.0}
    got = difference(one, {"b": 10.0, "a": 1.5, "c": 99.0})
    assert (got.mean, got.units) == (pytest.approx(0.75), 2)
    with pytest.raises(ValueError, match="in common"):
        difference(one, {"z": 1.0})


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[int, int]]) -> None:
    """Fails if a beaten point is on it, an unbeaten one is left out, or it does not rise in x and fall in y."""
    front = pareto_front(points)
    for index, (x, y) in enumerate(points):
        beaten = any((a > x and b >= y) or (a >= x and b > y) for a, b in points)
        assert (index in front) == (not beaten)
    shown = [points[index] for index in front]
    assert shown == sorted(shown) and [y for _, y in shown] == sorted((y for _, y in shown), reverse=True)
