"""Kernel inception distance: how far two sets of pictures are apart, without a bias from the size of the sets.

Bińkowski et al. 2018, arXiv 1801.01401, section 4: the unbiased estimate of the squared maximum mean discrepancy with
the kernel k(x, y) = (xᵀy / D + 1)³, a mean over random subsets. The features are Inception's, as for FID.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sets import check_sets

SCALE = 1000
"""Papers print KID times this."""


@dataclass(frozen=True)
class Kid:
    """A distance.

    Attributes:
        distance: KID × 1000; 0 is expected of two samples of one distribution, so that it may be a little negative.
            Lower is nearer.
        spread: standard deviation over the subsets, × 1000; None where there was one subset. Subsets overlap: it is no
            standard error.
        subset_size, subsets: what was used.
    """

    distance: float
    spread: float | None
    subset_size: int
    subsets: int


def mmd2_unbiased(x: Tensor, y: Tensor) -> float:
    """Unbiased squared MMD of features (N, D) and (M, D) with the cubic kernel; below 0 by chance.

    Raises ValueError for sets that do not fit together, hold NaN, or have fewer than two rows.
    """
    check_sets(x, y)
    x, y = x.to(torch.float64), y.to(torch.float64)
    within = _off_diagonal_mean(_kernel(x, x)) + _off_diagonal_mean(_kernel(y, y))
    return float(within - 2 * _kernel(x, y).mean())


def kid(generated: Tensor, references: Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0) -> Kid:
    """KID × 1000 of features (N, D) and (M, D), two rows or more each.

    Args:
        subsets: how many; one where the subset is both whole sets.
        subset_size: pictures drawn from each set, without putting back; never more than the smaller set has.
        seed: which pictures.
    """
    check_sets(generated, references)
    if subsets < 1 or subset_size < 2:
        raise ValueError(f"got {subsets} subsets of {subset_size} pictures; expected 1 or more, of 2 or more")
    size = min(subset_size, len(generated), len(references))
    if size == len(generated) == len(references):
        return Kid(SCALE * mmd2_unbiased(generated, references), None, size, 1)
    chance = torch.Generator().manual_seed(seed)
    found = torch.tensor(
        [mmd2_unbiased(_drawn(generated, size, chance), _drawn(references, size, chance)) for _ in range(subsets)],
        dtype=torch.float64,
    )
    spread = SCALE * float(found.std(correction=0)) if subsets > 1 else None
    return Kid(SCALE * float(found.mean()), spread, size, subsets)


def kid_distance(generated: Tensor, references: Tensor) -> float:
    """:func:`kid`'s distance with its usual subsets."""
    return kid(generated, references).distance


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    kernel: Tensor = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    count = len(kernel)
    mean: Tensor = (kernel.sum() - kernel.diagonal().sum()) / (count * (count - 1))
    return mean


def _drawn(features: Tensor, size: int, chance: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=chance)[:size].to(features.device)]
