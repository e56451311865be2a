"""KID against pair-by-pair sums in plain Python, and torchmetrics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from likeness.metrics.kid import kid, kid_distance, mmd2_unbiased


def features(seed: int, count: int, width: int = 5) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(x: Tensor, y: Tensor) -> float:
    """Equation 4 of the paper, number by number."""
    rows, others, width = x.tolist(), y.tolist(), x.shape[1]

    def kernel(a: list[float], b: list[float]) -> float:
        return (sum(p * q for p, q in zip(a, b, strict=True)) / width + 1) ** 3

    def within(set_: list[list[float]]) -> float:
        pairs = [kernel(a, b) for i, a in enumerate(set_) for j, b in enumerate(set_) if i != j]
        return sum(pairs) / len(pairs)

    across = [kernel(a, b) for a in rows for b in others]
    return within(rows) + within(others) - 2 * sum(across) / len(across)


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(2, 9))
@settings(max_examples=20, deadline=None)
def test_the_estimate_pair_by_pair(seed: int, many: int, others: int) -> None:
    """Fails if the diagonal is counted, the degree or the width is wrong, or the estimate is not symmetric or depends
    on the order of pictures."""
    x, y = features(seed, many), features(seed + 1, others) + 0.3
    found = mmd2_unbiased(x, y)
    assert found == pytest.approx(brute_force(x, y), abs=1e-9)
    assert mmd2_unbiased(y, x) == pytest.approx(found, abs=1e-9)
    assert mmd2_unbiased(x.flip(0), y.roll(1, 0)) == pytest.approx(found, abs=1e-9)


def test_torchmetrics_agrees() -> None:
    """torchmetrics with one subset that is the whole set. Fails if the scale of a thousand is lost."""
    theirs = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(0, 40), features(1, 40) * 1.2
    assert kid_distance(x, y) == pytest.approx(1000 * float(theirs.poly_mmd(x, y)), rel=1e-9)


def test_the_bias_is_none_and_the_subset_never_above_the_set() -> None:
    """Pairs of small samples of one distribution: the mean is 0 within three standard errors, where the biased estimate
    is off by 1000 and more. Fails if the diagonal counts, or a default of 1000 raises for eleven pictures."""
    found = torch.tensor([kid_distance(features(2 * n, 11), features(2 * n + 1, 11)) for n in range(300)])
    error = float(found.std()) / 300**0.5
    assert abs(float(found.mean())) < 3 * error < 150
    result = kid(features(0, 30), features(1, 11), subsets=7)
    assert (result.subset_size, result.subsets) == (11, 7) and result.spread is not None and result.spread > 0
    assert kid(features(0, 11), features(1, 11)).subsets == 1  # all subsets would be the same
    assert kid(features(0, 30), features(1, 11)) == kid(features(0, 30), features(1, 11))  # by seed


def test_what_cannot_be_estimated_is_refused() -> None:
    """Fails if one picture, which has no pair, gives a number."""
    with pytest.raises(ValueError, match="there are 1 generated"):
        kid(features(0, 1), features(1, 5))
    with pytest.raises(ValueError, match="got 0 subsets"):
        kid(features(0, 3), features(1, 5), subsets=0)
