"""Which noise levels are trained, and how often: the distribution of σ.

A quantile u in (0, 1] is drawn; high is noisy. What becomes of it depends on the model and on what is asked for:

- By default it picks ``sigmas[⌊u N⌋]`` of the model's own schedule. A flow model's schedule is already shifted (SD3's
  by 3, Flux's by e^1.15, or by whatever a ModelSampling node set), so ``uniform`` trains each of the *shifted* levels
  as often as any other, as sampling with the plain schedule visits them, and ``logit-normal`` is a logit-normal of the
  time before the shift.
- A flow model and an explicit shift c: σ = c u / (1 + (c−1) u), from the quantile itself. The model's own shift is left
  out, so nothing is shifted twice, and c = 1 trains the density as the papers write it. With the model's own c this is
  the default again.
- ε and v models have no shift of their own: an explicit one moves the quantile, which then picks among the σ's.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .config import TrainingConfig
from .denoiser import Parameterisation

_FEW, _MANY = (256, 0.5), (4096, 1.15)
"""Flux's two points (image tokens, ln of the shift): pictures of 256² and of 1024² pixels."""


def quantiles(
    count: int,
    generator: torch.Generator,
    sampling: str = "uniform",
    *,
    mean: float = 0.0,
    std: float = 1.0,
    mode_scale: float = 1.29,
) -> Tensor:
    """Draw u, by the densities of Esser et al. 2024 (arXiv 2403.03206, §3.1) and others.

    - ``uniform``: U(0, 1).
    - ``logit-normal``: sigmoid(m + s z), z ~ N(0, 1).
    - ``sigmoid``, ``shift``: sigmoid(s z).
    - ``mode``: 1 − v − S (cos²(πv/2) − 1 + v), v ~ U(0, 1) (eq. 20): more of the middle for S > 0, of the ends for
      S < 0, uniform for S = 0; increasing in 1 − v for S from −1 to 2/(π−2) = 1.75.
    - ``cosmap``: 1 − 1/(tan(πv/2) + 1): the SNR's distribution under the cosine schedule of ε models.

    Args:
        count: how many.
        generator: on the CPU.

    Returns:
        (count,) float32 in [0, 1].

    Raises:
        ValueError: unknown sampling.
    """
    if sampling in ("logit-normal", "sigmoid", "shift"):
        z = torch.randn(count, generator=generator)
        return torch.sigmoid(std * z + (mean if sampling == "logit-normal" else 0))
    u = torch.rand(count, generator=generator)
    if sampling == "uniform":
        return u
    if sampling == "mode":
        return (1 - u - mode_scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)).clamp(0, 1)
    if sampling == "cosmap":
        return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
    raise ValueError(f"Unknown timestep sampling {sampling!r}.")


def shifted(u: Tensor, factor: float) -> Tensor:
    """c u / (1 + (c−1) u): the time at which a flow has √SNR = (1−u)/(u c) (arXiv 2403.03206, §5.3.2)."""
    return factor * u / (1 + (factor - 1) * u)


def resolution_shift(tokens: float) -> float:
    """Flux's shift factor e^μ, μ linear in the count of image tokens: .5 at 256 (256² pixels), 1.15 at 4096 (1024²).

    That is 1.65 at 256², 1.88 at 512² and 3.16 at 1024². (SD3's rule is √(m/n) for m pixels in place of n: with its
    3 at 1024² that is 1.5 at 512²; set it as a static shift.)
    """
    slope = (_MANY[1] - _FEW[1]) / (_MANY[0] - _FEW[0])
    return math.exp(_FEW[1] + slope * (tokens - _FEW[0]))


def explicit_shift(config: TrainingConfig, tokens: float) -> float | None:
    """The shift that a configuration asks for, for pictures of so many image tokens; None: the model's own."""
    shifting = config.timestep_shifting
    if shifting == "resolution":
        return resolution_shift(tokens)
    if shifting == "static" or config.timestep_sampling == "shift":
        return config.timestep_shift
    return 1.0 if shifting == "none" else None


def draw_sigmas(
    sigmas: Tensor,
    count: int,
    generator: torch.Generator,
    sampling: str = "uniform",
    *,
    parameterisation: Parameterisation = "eps",
    mean: float = 0.0,
    std: float = 1.0,
    mode_scale: float = 1.29,
    shift: float | None = None,
) -> Tensor:
    """Draw noise levels, see the module's head.

    Args:
        sigmas: (N,) ascending, those the model was trained on.
        count: how many.
        generator: on the CPU.
        sampling, mean, std, mode_scale: see :func:`quantiles`.
        shift: explicit factor c; None leaves it to the model's schedule.

    Returns:
        (count,) of the dtype and device of ``sigmas``. For flow with an explicit shift they are of (0, 1], on the grid
        of N equal steps of the time before the shift; otherwise values of ``sigmas``.

    Raises:
        ValueError: unknown sampling.
    """
    u = quantiles(count, generator, sampling, mean=mean, std=std, mode_scale=mode_scale)
    steps = len(sigmas)
    if shift is not None and parameterisation != "flow":
        u = shifted(u, shift)
    index = (u * steps).long().clamp_(0, steps - 1)
    if shift is not None and parameterisation == "flow":
        return shifted((index + 1) / steps, shift).to(sigmas)
    return sigmas[index.to(sigmas.device)]


def timesteps(sigma: Tensor, sigmas: Tensor, parameterisation: Parameterisation) -> Tensor:
    """t/T in [0, 1] of noise levels (B,): σ itself for flow, else the place among the model's N levels, i/N."""
    if parameterisation == "flow":
        return sigma
    return torch.searchsorted(sigmas, sigma.to(sigmas)) / len(sigmas)
