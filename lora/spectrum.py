"""What the singular values of a ΔW say: how many directions it has, and how many of them carry weight."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def effective_rank(values: Tensor) -> float:
    """exp(H(p)), p = s / Σs, H the entropy in nats (Roy & Vetterli 2007, "The effective rank", definition 1).

    values: (k,) singular values ≥ 0. Between 1 (one direction) and k (all equal), and 0 where all are 0. It does not
    change with the scale of ΔW.
    """
    total = float(values.sum())
    if total <= 0:
        return 0.0
    return math.exp(float(torch.special.entr(values.to(torch.float64) / total).sum()))


def stable_rank(values: Tensor) -> float:
    """‖ΔW‖²_F / ‖ΔW‖²₂ = Σs² / s₁²: at least 1, at most the rank; 0 where all are 0. values: (k,), descending."""
    largest = float(values[0]) if values.numel() else 0.0
    return float((values.to(torch.float64) / largest).square().sum()) if largest > 0 else 0.0


def norm(values: Tensor) -> float:
    """‖ΔW‖_F = √Σs²."""
    return float(torch.linalg.vector_norm(values.to(torch.float64)))


def tails(values: Tensor) -> Tensor:
    """(k + 1,): the share of Σs² that each rank 0 … k loses. values: (k,), descending; where all are 0 none is lost.

    Summed from the smallest, so that the share of a small tail is exact and not the difference of two large numbers.
    """
    energies = values.to(torch.float64).square().flip(0)
    sums = torch.cat([torch.zeros(1, dtype=torch.float64, device=values.device), energies.cumsum(0)]).flip(0)
    return sums / sums[0] if float(sums[0]) > 0 else sums


def smallest_rank(values: Tensor, lost: float) -> int:
    """The smallest rank ≥ 1 that loses at most the share `lost` (0 to 1) of Σs². values: (k,), descending."""
    return max(1, int((tails(values) > lost).sum()))
