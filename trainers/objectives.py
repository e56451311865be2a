"""The losses of diffusion training, all in x₀ space.

A Denoiser predicts x₀. With the parameterisations of :mod:`.denoiser`, its error is that of the network times a
number that depends on σ alone:

- ``eps``:  x̂₀ − x₀ = −σ (ε̂ − ε)
- ``v``:    x̂₀ − x₀ = −σ/√(1+σ²) (v̂ − v)
- ``flow``: x̂₀ − x₀ = −σ (v̂ − v)

so a weight turns the squared x₀ error into the usual loss exactly.

The weightings of the literature are a weight of the x₀ error each, W(SNR), whatever the network predicts; where a paper
states one for ε only, v and flow get the same W. As a factor of the network's own loss W is divided by
:func:`x0_weight`:

============== ================== ==================== ======================= =====================
weighting      W                  ε factor             v factor                flow factor
============== ================== ==================== ======================= =====================
min-SNR        min(SNR, γ)        min(1, γ/SNR)        min(SNR, γ)/(SNR+1)     min(SNR, γ) σ²
truncated SNR  max(SNR, 1)        max(1, 1/SNR)        max(SNR, 1)/(SNR+1)     max((1−σ)², σ²)
debiased       √SNR               1/√SNR               √SNR/(SNR+1)            σ (1−σ)
P2             SNR/(k+SNR)^γ      1/(k+SNR)^γ          SNR/(SNR+1)/(k+SNR)^γ   (1−σ)²/(k+SNR)^γ
============== ================== ==================== ======================= =====================
"""

from __future__ import annotations

import torch
from torch import Tensor

from .config import TrainingConfig
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
    """Min-SNR-γ (Hang et al. 2023, arXiv 2303.09556, §3.4), a factor of the network's own loss."""
    return snr(sigma, parameterisation).clamp(max=gamma) / x0_weight(sigma, parameterisation)


def truncated_snr_factor(sigma: Tensor, parameterisation: Parameterisation) -> Tensor:
    """Truncated SNR (Salimans & Ho 2022, arXiv 2202.00512, §4), a factor of the network's own loss.

    An ε network's loss at the highest noise of SD1.5 gets 213: lower the learning rate.
    """
    return snr(sigma, parameterisation).clamp(min=1) / x0_weight(sigma, parameterisation)


def debiased_factor(sigma: Tensor, parameterisation: Parameterisation) -> Tensor:
    """Debiased estimation, 1/√SNR of the ε loss (Yu et al. 2023, arXiv 2310.08442), a factor of the network's own."""
    return snr(sigma, parameterisation).sqrt() / x0_weight(sigma, parameterisation)


def p2_factor(sigma: Tensor, parameterisation: Parameterisation, gamma: float, k: float) -> Tensor:
    """P2, 1/(k+SNR)^γ of the ε loss (Choi et al. 2022, arXiv 2204.00227, §3), a factor of the network's own loss."""
    ratio = snr(sigma, parameterisation)
    return ratio / (k + ratio) ** gamma / x0_weight(sigma, parameterisation)


def loss_factor(sigma: Tensor, parameterisation: Parameterisation, config: TrainingConfig) -> Tensor | None:
    """The weighting of a configuration, (B,) for σ (B,); None: each noise level counts as the network's own loss.

    ``auto`` is debiased for networks that predict the noise, whose own loss hardly hears the noisy levels, where the
    subject is laid out; v and flow hear them as they are. benchmarks/README.md has what it is worth.
    """
    if config.min_snr_gamma > 0:
        return min_snr_factor(sigma, parameterisation, config.min_snr_gamma)
    if config.weighting == "truncated-snr":
        return truncated_snr_factor(sigma, parameterisation)
    if config.weighting == "debiased" or (config.weighting == "auto" and parameterisation == "eps"):
        return debiased_factor(sigma, parameterisation)
    if config.weighting == "p2":
        return p2_factor(sigma, parameterisation, config.p2_gamma, config.p2_k)
    return None


def scheduled_huber_c(
    sigma: Tensor, timestep: Tensor, parameterisation: Parameterisation, c: float, schedule: str
) -> Tensor:
    """c of the pseudo-Huber loss by noise level (Khrapov et al. 2024, arXiv 2403.16728).

    Little noise gets a c near 1, where the loss is nearly the squared one, and much noise the given c, so that outliers
    do not decide the picture's plan.

    Args:
        sigma: (B,).
        timestep: (B,) t/T in [0, 1], see :func:`.levels.timesteps`.
        c: the one at the highest noise.
        schedule: ``constant``; ``exponential``, c^(t/T); ``snr``, (1−c)/(1+SNR^−½)² + c, for flow (1−c)(1−σ)² + c.

    Returns:
        (B,).

    Raises:
        ValueError: unknown schedule.
    """
    if schedule == "constant":
        return torch.full_like(sigma, c)
    if schedule == "exponential":
        return c**timestep
    if schedule == "snr":
        return (1 - c) / (1 + snr(sigma, parameterisation).rsqrt()) ** 2 + c
    raise ValueError(f"Unknown Huber schedule {schedule!r}; expected 'constant', 'exponential' or 'snr'.")


def _over(weight: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, …, 1) with as many dimensions as ``like``."""
    return weight.view(-1, *[1] * (like.ndim - 1))


def diffusion_loss(
    predicted: Tensor,
    target: Tensor,
    sigma: Tensor,
    parameterisation: Parameterisation,
    *,
    mask: Tensor | None = None,
    factor: Tensor | None = None,
    huber_c: Tensor | float | None = None,
) -> Tensor:
    """The training loss, from x₀ predictions.

    Args:
        predicted: (B, C, …, h, w) x̂₀.
        target: x₀, of the same shape.
        sigma: (B,) noise levels.
        parameterisation: of the network; the error is scaled to be the network's own.
        mask: (B, h, w) in [0, 1], or None. The mean of each picture is over what the mask keeps, so that a small
            subject counts as much as a large one.
        factor: (B,) of each picture's loss, see :func:`loss_factor`, or None.
        huber_c: pseudo-Huber 2c(√(e²+c²) − c) in place of e²; (B,) or one for all.

    Returns:
        Scalar, the mean over the batch.
    """
    # One multiplication of the error, rather than of its square: the same, and it holds for Huber too.
    error = (predicted - target) * _over(x0_weight(sigma, parameterisation).sqrt(), target)
    loss = error.square()
    if huber_c is not None:
        c = _over(huber_c, loss) if isinstance(huber_c, Tensor) else huber_c
        # 2c(√(e²+c²) − c) without the cancellation for small e.
        loss = 2 * c * loss / ((loss + c**2).sqrt() + c)
    if mask is None:
        each = loss.flatten(1).mean(1)
    else:
        weight = mask.view(mask.shape[0], *[1] * (loss.ndim - 3), *mask.shape[1:]).expand_as(loss)
        each = (loss * weight).flatten(1).sum(1) / weight.flatten(1).sum(1).clamp(min=1e-6)
    if factor is not None:
        each = each * factor
    return each.mean()
