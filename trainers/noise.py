"""What the noise is, beyond plain normal: with more of the low frequencies, or perturbed."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .denoiser import Parameterisation


def pyramid_noise(noise: Tensor, generator: torch.Generator, levels: int, discount: float) -> Tensor:
    """Add coarser and coarser noise, so that large areas are noised too (Whitaker 2023, multi-resolution noise).

    Level i is normal noise at 1/2^i of the size, enlarged (bilinear) and weighted by discount^i, until one pixel is
    left. Each level has exactly unit variance at each pixel, and so has the sum: only neighbours become alike.

    Args:
        noise: (B, C, …, h, w), N(0, 1); level 0.
        generator: on the CPU.
        levels: beyond level 0; 6 is usual.
        discount: 0.1 to 0.4 is usual; 0 = plain noise.

    Returns:
        The same shape and dtype, marginally N(0, 1).
    """
    height, width = noise.shape[-2:]
    total, variance = noise, 1.0  # the latter of the sum, Σ discount^2i
    for level in range(1, levels + 1):
        rows, columns = max(1, height >> level), max(1, width >> level)
        coarse = torch.randn(*noise.shape[:-2], rows, columns, generator=generator, dtype=noise.dtype)
        wide = _enlarging(rows, height).to(noise) @ coarse @ _enlarging(columns, width).to(noise).T
        total = total + discount**level * wide
        variance += discount**level * discount**level
        if rows == columns == 1:
            break
    return total / math.sqrt(variance)


def _enlarging(few: int, many: int) -> Tensor:
    """(many, few) matrix of a linear interpolation whose rows have norm 1: unit variance in, unit variance out."""
    rows: Tensor = interpolate(torch.eye(few)[None], size=many, mode="linear")[0].T
    return rows / rows.square().sum(1, keepdim=True).sqrt()


def perturbed_target(
    latents: Tensor, sigma: Tensor, parameterisation: Parameterisation, strength: float, perturbation: Tensor
) -> Tensor:
    """What x̂₀ is to be when only the network's input is perturbed (Ning et al. 2023, arXiv 2301.11706).

    The network sees latents noised with n + γ ξ but its target stays that of n. The x₀ that such a network output
    means, given the perturbed input, is x₀ plus γ ξ times σ for ε and flow, σ/(1+σ²) for v; an error from there is the
    network's own.

    Args:
        latents: x₀ (B, C, …).
        sigma: (B,).
        strength: γ; the paper's is 0.1.
        perturbation: ξ, N(0, 1), of the latents' shape.
    """
    carried = sigma / (1 + sigma.square()) if parameterisation == "v" else sigma
    return latents + strength * carried.view(-1, *[1] * (latents.ndim - 1)) * perturbation
