"""Model Breadcrumbs: neither outliers nor crumbs (Davari & Belilovsky 2023, arXiv 2312.06795, §3)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .trim import total


def breadcrumb(delta: Tensor, beta: float, gamma: float) -> Tensor:
    """ΔW with the entries whose magnitude ranks in (β · n, γ · n] of the layer's n, from the smallest; 0 for the rest.

    delta: any shape. 0 ≤ β < γ ≤ 1: the paper's left and right thresholds, as shares: β of the smallest and 1 − γ of
    the largest are masked. ⌊·⌋ of both counts. Equal magnitudes are ranked in the order in which they stand. mergekit
    says the same by density = γ − β and gamma = 1 − γ.
    Raises ValueError for other thresholds.
    """
    if not 0 <= beta < gamma <= 1:
        raise ValueError(f"beta is {beta} and gamma {gamma}; expected 0 ≤ beta < gamma ≤ 1")
    n = delta.numel()
    order = delta.abs().flatten().argsort(stable=True)
    kept = order[int(beta * n) : n - int(n - gamma * n)]
    out = torch.zeros_like(delta).flatten()
    out[kept] = delta.flatten()[kept]
    return out.reshape(delta.shape)


def breadcrumbs(deltas: Iterable[Tensor], beta: float, gamma: float) -> Tensor:
    """Σᵢ of the masked differences (eq. 3, without α, which is the λ of all methods here).

    deltas: n times (…), weighted.
    """
    return total(breadcrumb(delta, beta, gamma) for delta in deltas)
