from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.trainers.exponential import QUANTILE, nu_of_rank, rank_of_nu, weights

NU = st.floats(1e-3, 2.3)


def f(nu: float, rank: int | None = None) -> torch.Tensor:
    (found,) = weights(torch.tensor([nu], dtype=torch.float64), [rank or rank_of_nu(nu)])
    return found


@given(NU)
def test_the_sum_is_the_quantile_and_the_order_falls(nu: float) -> None:
    """Fails if the last interval is not cut at the quantile, a component is missing or too many, or f is unordered."""
    found = f(nu)
    assert float(found.sum()) == pytest.approx(QUANTILE, abs=1e-12)
    assert bool((found > 0).all()) and bool((found.diff() < 0).all())
    for x, value in enumerate(found[:-1].tolist()):  # the paper's, counted from 0
        assert value == pytest.approx(math.exp(-nu * x) - math.exp(-nu * (x + 1)), abs=1e-14)
    assert not f(nu, len(found) + 3)[len(found) :].any()  # beyond the quantile: exactly nothing


@given(st.integers(1, 4096))
def test_rank_and_nu_are_each_others_inverse(rank: int) -> None:
    """Fails if D is not ⌈−ln(1 − q)/ν⌉, or a rank comes back as the next one by rounding."""
    assert rank_of_nu(nu_of_rank(rank)) == rank
    assert rank_of_nu(nu_of_rank(rank) / 1.0001) == rank + 1
    assert nu_of_rank(rank) == pytest.approx(-math.log(1 - QUANTILE) / rank, rel=1e-8)


@given(st.floats(0.03, 2.2), st.floats(1.001, 1.5))
def test_rank_moves_against_nu(nu: float, factor: float) -> None:
    """Fails if a larger ν makes more components, or D jumps by other than the quantile does."""
    assert rank_of_nu(nu * factor) <= rank_of_nu(nu)
    assert abs(rank_of_nu(nu) - -math.log(1 - QUANTILE) / nu) <= 1


def test_layers_do_not_mix() -> None:
    """Fails if the layers' components are shifted against each other in the one computation of all."""
    nus, ranks = torch.tensor([0.2, 1.7, 0.5], dtype=torch.float64), [12, 2, 5]
    for nu, rank, together in zip(nus.tolist(), ranks, weights(nus, ranks), strict=True):
        assert torch.equal(together, f(nu, rank))
