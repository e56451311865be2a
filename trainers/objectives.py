"""The losses of diffusion training, all in x₀ space, and how noise levels are drawn.

A Denoiser predicts x₀. With the parameterisations of :mod:`.denoiser`, its error is that of the network times a
number that depends on σ alone:

- ``eps``:  x̂₀ − x₀ = −σ (ε̂ − ε)
- ``v``:    x̂₀ − x₀ = −σ/√(1+σ²) (v̂ − v)
- ``flow``: x̂₀ − x₀ = −σ (v̂ − v)

so a weight turns the squared x₀ error into the usual loss exactly.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import Parameterisation


def snr(sigma: Tensor, parameterisation: Parameterisation) -> Tensor:
    """Signal to noise ratio, of any shape: 1/σ², for flow (1−σ)²/σ²."""
    if parameterisation == "flow":
        return ((1 - sigma) / sigma) ** 2
    return sigma**-2


def x0_weight(sigma: Tensor, parameterisation: Parameterisation) -> Tensor:
    """What the squared x₀ error is times to be the network's own squared error: 1/σ², for v (1+σ²)/σ².

    Raises:
        ValueError: unknown parameterisation.
    """
    if parameterisation in ("eps", "flow"):
        return sigma**-2
    if parameterisation == "v":
        return 1 + sigma**-2
    raise ValueError(f"Unknown parameterisation {parameterisation!r}; expected 'eps', 'v' or 'flow'.")


def min_snr_factor(sigma: Tensor, parameterisation: Parameterisation, gamma: float) -> Tensor:
    """Min-SNR-γ weight of the network's own loss (Hang et al. 2023, arXiv 2303.09556, §3.4).

    The paper's weight in x₀ space is min(SNR, γ), whatever the network predicts. Of the network's own loss that is
    min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR+1) for v, and min(SNR, γ)·σ² for flow.
    """
    return snr(sigma, parameterisation).clamp(max=gamma) / x0_weight(sigma, parameterisation)


def draw_sigmas(
    sigmas: Tensor,
    count: int,
    generator: torch.Generator,
    sampling: str = "uniform",
    mean: float = 0.0,
    std: float = 1.0,
    shift: float = 3.0,
) -> Tensor:
    """Draw noise levels among those the model was trained on.

    A quantile u in (0, 1) picks ``sigmas[⌊u N⌋]``; high is noisy. How u is distributed:

    - ``uniform``: U(0, 1), each trained σ as often as any other.
    - ``logit-normal``: sigmoid(m + s z), z ~ N(0, 1) (Esser et al. 2024, arXiv 2403.03206, §3.1).
    - ``sigmoid``: sigmoid(s z).
    - ``shift``: that one shifted to c u / (1 + (c−1) u) by the factor c (the same paper, §5.3.2).

    Args:
        sigmas: (N,) ascending.
        count: how many.
        generator: on the CPU.

    Returns:
        (count,) of the dtype and device of ``sigmas``.

    Raises:
        ValueError: unknown sampling.
    """
    if sampling == "uniform":
        u = torch.rand(count, generator=generator)
    elif sampling in ("logit-normal", "sigmoid", "shift"):
        u = torch.sigmoid(std * torch.randn(count, generator=generator) + (mean if sampling == "logit-normal" else 0))
        if sampling == "shift":
            u = shift * u / (1 + (shift - 1) * u)
    else:
        raise ValueError(f"Unknown timestep sampling {sampling!r}.")
    index = (u * len(sigmas)).long().clamp_(0, len(sigmas) - 1)
    return sigmas[index.to(sigmas.device)]


def _over(weight: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …, 1) with as many dimensions as ``like``."""
    return weight.view(-1, *[1] * (like.ndim - 1))


def diffusion_loss(
    predicted: Tensor,
    latents: Tensor,
    sigma: Tensor,
    parameterisation: Parameterisation,
    *,
    mask: Tensor | None = None,
    min_snr_gamma: float = 0.0,
    huber_c: float | None = None,
) -> Tensor:
    """The training loss, from x₀ predictions.

    Args:
        predicted: (B, C, …, h, w) x̂₀.
        latents: x₀, of the same shape.
        sigma: (B,) noise levels.
        parameterisation: of the network; the error is scaled to be the network's own.
        mask: (B, h, w) in [0, 1], or None. The mean of each picture is over what the mask keeps, so that a small
            subject counts as much as a large one.
        min_snr_gamma: 0 = off.
        huber_c: pseudo-Huber 2c(√(e²+c²) − c) in place of e².

    Returns:
        Scalar, the mean over the batch.
    """
    # One multiplication of the error, rather than of its square: the same, and it holds for Huber too.
    error = (predicted - latents) * _over(x0_weight(sigma, parameterisation).sqrt(), latents)
    loss = error.square()
    if huber_c is not None:
        # 2c(√(e²+c²) − c) without the cancellation for small e.
        loss = 2 * huber_c * loss / ((loss + huber_c**2).sqrt() + huber_c)
    if mask is None:
        each = loss.flatten(1).mean(1)
    else:
        weight = mask.view(mask.shape[0], *[1] * (loss.ndim - 3), *mask.shape[1:]).expand_as(loss)
        each = (loss * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)
    if min_snr_gamma > 0:
        each = each * min_snr_factor(sigma, parameterisation, min_snr_gamma)
    return each.mean()
