"""The Karcher mean: the point of a sphere with the least sum of squared angles (Karcher 1977, "Riemannian center of
mass and mollifier smoothing"; the iteration is that of Buss & Fillmore 2001, "Spherical averages", algorithm A1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .sphere import directions

_ITERATIONS, _STILL = 200, 1e-12


def karcher(gram: Tensor, weights: Tensor) -> Tensor:
    """(n,) coefficients of the weighted Karcher mean of the directions, with the norm Σ αᵢ‖ΔWᵢ‖; αᵢ = |wᵢ| / Σ|w|.

    Minimises Σ αᵢ angle(u, uᵢ)². Every step stays in the span of the ΔW, so that only their inner products are needed
    and the result is exact as a concatenation. Of two it is SLERP at t = α₂. Weights are as in ``slerp``, and so are
    LoRAs without this layer. Where the directions cancel (no mean is nearer than another) it is the arithmetic mean.
    gram: (n, n). mergekit's has the same direction, from weights that may not be negative.
    Raises ValueError where all weights are 0.
    """
    alpha, norms, cosines, scale = directions(gram, weights)
    length = (alpha * norms).sum()
    share = alpha * (norms > 0)
    mean = share / share.sum() if float(share.sum()) > 0 else share
    if float(mean @ cosines @ mean) < 1e-12:
        return alpha * weights.sign()
    mean = mean / (mean @ cosines @ mean).sqrt()
    for _ in range(_ITERATIONS):
        to_each = (cosines @ mean).clamp(-1, 1)
        angles = torch.arccos(to_each)
        # log map: uᵢ − cos θᵢ · mean has length sin θᵢ, and shall have θᵢ
        stretch = share * torch.where(angles.sin() > 1e-9, angles / angles.sin().clamp_min(1e-9), 1.0)
        tangent = stretch - (stretch * to_each).sum() * mean
        step = (tangent @ cosines @ tangent).clamp_min(0).sqrt()
        if float(step) < _STILL:
            break
        mean = step.cos() * mean + step.sin() / step * tangent
        mean = mean / (mean @ cosines @ mean).sqrt()
    return mean * length * scale
