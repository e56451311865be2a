"""What a metric tells apart, against scipy's Mann–Whitney and features whose cosines are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from likeness.metrics.separation import (
    OTHERS,
    SAME_CLASS,
    SELF,
    Gap,
    gap,
    separation,
    separation_rows,
    separation_table,
)

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=9)


@settings(max_examples=60)
@given(scores, scores)
def test_the_auc_is_mann_whitneys(one: list[int], other: list[int]) -> None:
    """Fails if ties count whole or not at all, or the sets are swapped. Oracle: U / (N M)."""
    a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    found = gap(a, b)
    assert found.auc == pytest.approx(stats.mannwhitneyu(a, b).statistic / (len(a) * len(b)))
    assert gap(b, a).auc == pytest.approx(1 - found.auc)
    assert found.overlap == sum(value >= min(one) for value in other) / len(other)


def test_d_prime_of_two_normals() -> None:
    """Fails if the deviations are added, or one set's alone is taken. Oracle: means 2 apart, variances 1 and 3."""
    chance = np.random.default_rng(0)
    found = gap(chance.normal(2, 1, 40_000), chance.normal(0, math.sqrt(3), 40_000))
    assert found.d_prime == pytest.approx(math.sqrt(2), rel=0.02)
    assert found.auc == pytest.approx(stats.norm.cdf(1.0), abs=0.005)  # 2 / √(1 + 3)
    assert math.isnan(gap(np.ones(3), np.zeros(2)).d_prime)


def at(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_a_reference_is_not_scored_against_itself() -> None:
    """Fails if the cosine of 1 with itself is in the mean: then every metric seems to tell every subject apart."""
    found = separation(at(0, 60, 90), {OTHERS: at(180)})
    c30, c60 = math.cos(math.pi / 6), 0.5
    np.testing.assert_allclose(found.scores[SELF], [c60 / 2, (c60 + c30) / 2, c30 / 2], atol=1e-6)
    np.testing.assert_allclose(found.scores[OTHERS], [(-1 - c60) / 3], atol=1e-6)
    assert found.gaps[OTHERS].auc == 1 and found.gaps[OTHERS].overlap == 0


def test_copies_of_the_references_are_chance() -> None:
    """Fails if the leave-one-out of the references is easier or harder than that: same pictures, AUC near .5."""
    chance = torch.Generator().manual_seed(0)
    centre = torch.randn(64, generator=chance)
    one, other = (centre + 2 * torch.randn(80, 64, generator=chance) for _ in range(2))
    assert separation(one, {SAME_CLASS: other}).gaps[SAME_CLASS].auc == pytest.approx(0.5, abs=0.12)


def test_rows_and_table_say_what_was_found() -> None:
    """Fails if a set is lost on the way, or a metric that cannot tell its class apart is not called so."""
    found = separation(at(0, 10, 20), {SAME_CLASS: at(5, 12, 80), OTHERS: at(170)})
    rows = separation_rows(found, "dino", "M", "dog")
    assert [row.method for row in rows[:7]] == [SELF] * 3 + [SAME_CLASS] * 3 + [OTHERS]
    assert [(row.metric, row.value) for row in rows[7:]] == [
        (f"separation_{name}", value)
        for each in (found.gaps[SAME_CLASS], found.gaps[OTHERS])
        for name, value in (("auc", each.auc), ("d", each.d_prime))
    ]
    table = separation_table(found, "M")
    assert "does not tell the subject" in table and "| other classes | 1 |" in table and "nan" not in table
    sharp = separation(at(0, 10, 20), {SAME_CLASS: at(80, 90)})
    assert "does not tell" not in separation_table(sharp, "M") and isinstance(sharp.gaps[SAME_CLASS], Gap)


def test_too_few_pictures_are_told() -> None:
    """Fails if one reference gives 0/0."""
    with pytest.raises(ValueError, match="two or more"):
        separation(at(0), {OTHERS: at(1)})
    with pytest.raises(ValueError, match="nothing to tell"):
        separation(at(0, 1), {})
