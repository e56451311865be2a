"""The seam between a trainer and a diffusion model, whichever it is and whoever loaded it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

Cond = object
"""What a Denoiser made of one caption (and the picture's size, where the model wants it). Opaque to trainers."""

Parameterisation = Literal["eps", "v", "flow"]
"""What the network predicts: the noise, the velocity of a variance preserving process, or that of a rectified flow.

In the σ's used here (x₀ the clean latents, n ~ N(0, I)):

- ``eps``:  x = x₀ + σ n,          x̂₀ = x − σ ε̂
- ``v``:    x = x₀ + σ n,          x̂₀ = x/(1+σ²) − σ v̂/√(1+σ²)
- ``flow``: x = (1−σ) x₀ + σ n,    x̂₀ = x − σ v̂
"""


class Denoiser(Protocol):
    """Five things that training needs of a diffusion model.

    One may also have ``patch_size``, of its image tokens in latents (2 where it has none): the shift of noise levels by
    resolution counts tokens. And where its text encoders are trained, ``text_encoders`` (prefix of their canonical
    layer names -> module) and ``text_devices`` (prefix -> where it computes).
    """

    @property
    def module(self) -> nn.Module:
        """Where adapters go in. ``"diffusion_model." + name`` of its modules are the canonical layer names."""

    @property
    def parameterisation(self) -> Parameterisation:
        """What the network predicts; it decides the weight of a loss in x₀ space."""

    @property
    def sigmas(self) -> Tensor:
        """(N,) the noise levels the model was trained on, ascending and positive."""

    @property
    def device(self) -> torch.device:
        """Where latents and noise must be for :meth:`denoise`."""

    def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Cond]) -> Tensor:
        """Predict x₀.

        Args:
            noisy: (B, C, …) float32 noisy latents, as :meth:`noise_scaling` makes them.
            sigma: (B,) float32 noise levels.
            conds: B of them.

        Returns:
            (B, C, …) float32, differentiable with regard to the adapters in :attr:`module`.
        """

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        """Noise latents (B, C, …) to the levels sigma (B,): x₀ + σ n, or (1−σ) x₀ + σ n."""
