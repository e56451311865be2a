"""What SLERP and the Karcher mean share: directions and norms, from inner products alone."""

from __future__ import annotations

import torch
from torch import Tensor


def directions(gram: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(α, norms, cosines, scale) of n differences, float64; from gram (n, n) and weights (n,).

    A weight says how much of the mean a LoRA is: αᵢ = |wᵢ| / Σ|w|. Where it is negative, −ΔW takes part. norms: (n,)
    ‖ΔWᵢ‖. cosines: (n, n) between the directions that take part; 0 of one that has none (‖ΔW‖ = 0). scale: (n,), with
    which ΔWᵢ becomes its direction: ±1 / ‖ΔWᵢ‖, 0 where there is none.
    Raises ValueError where all weights are 0.
    """
    if not bool((weights != 0).any()):
        raise ValueError("all weights are 0, so that they have no mean; give one of them another weight")
    norms = gram.diagonal().clamp_min(0).sqrt()
    scale = torch.where(norms > 0, weights.sign() / norms.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    cosines = (gram * scale[:, None] * scale).clamp(-1, 1)
    return weights.abs() / weights.abs().sum(), norms, cosines, scale
