"""Spherical linear interpolation (Shoemake 1985, "Animating rotation with quaternion curves", §3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from .sphere import directions


def slerp(gram: Tensor, weights: Tensor) -> Tensor:
    """(2,) coefficients of the difference at t on the great circle from ΔW₁ to ΔW₂; t = |w₂| / (|w₁| + |w₂|).

    The direction is u₁ sin((1−t)Ω)/sin Ω + u₂ sin(tΩ)/sin Ω with cos Ω = ⟨u₁, u₂⟩ over the whole layer, the norm
    (1−t)‖ΔW₁‖ + t‖ΔW₂‖. Both are linear in the ΔW, so the result is exact as a concatenation. gram: (2, 2). Weights
    are shares, not strengths: (1, 1) and (0.5, 0.5) are the same; a negative one turns its ΔW round. mergekit puts the
    sines on the ΔW as they are, which is the same where the norms are; for parallel and opposite directions both
    interpolate in a straight line. A LoRA without this layer has no direction: then it is the other's, and the norm
    (1−t)‖ΔW₁‖ or t‖ΔW₂‖.
    Raises ValueError where there are not two, or both weights are 0.
    """
    if len(weights) != 2:
        raise ValueError(f"SLERP interpolates between two LoRAs and was given {len(weights)}; use karcher for more")
    alpha, norms, cosines, scale = directions(gram, weights)
    angle = torch.arccos(cosines[0, 1])
    if bool((norms == 0).any()):
        circle = (norms > 0).to(torch.float64)
    elif float(angle.sin()) < 1e-6:
        circle = alpha
    else:
        circle = (alpha * angle).sin() / angle.sin()
    return circle * (alpha * norms).sum() * scale
