"""The stream of (x0, ε, σ, picture) that every contender sees, step by step.

It is the one Likeness' trainer draws by itself: its loop runs once on a network of a few weights and what it asks of
`noise_scaling` is written down. The contender that runs the same loop on the real model is checked to draw the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from models import Model
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """x0, noise: (steps, B, C, H, W); sigma: (steps, B); picture: (steps, B) int; and of each picture its latents
    (pictures, C, H, W), text (pictures, tokens, width) and pooled text (pictures, width), the latter perhaps empty."""

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    picture: Tensor
    latents: Tensor
    text: Tensor
    pooled: Tensor

    def texts(self, step: int) -> tuple[Tensor, Tensor]:
        """(B, tokens, width) and (B, width) of a step's pictures."""
        return self.text[self.picture[step]], self.pooled[self.picture[step]]

    def to(self, device: torch.device) -> Stream:
        """All of it on that device."""
        return Stream(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def save(self, path: Path) -> None:
        save_file({k: v.contiguous() for k, v in vars(self).items()}, str(path))

    @classmethod
    def load(cls, path: Path) -> Stream:
        return cls(**load_file(str(path)))


def cached(model: Model, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is cached of the pictures, unit normal: latents, text and pooled text, as in :class:`Stream`."""
    draw = torch.Generator().manual_seed(seed)
    shapes = model.latent, model.text, (model.pooled,)
    latents, text, pooled = (torch.randn(model.pictures, *shape, generator=draw) for shape in shapes)
    return latents, text, pooled


def ddpm_sigmas() -> Tensor:
    """The σ of Stable Diffusion's 1000 training steps, ascending: sqrt((1 - ᾱ) / ᾱ), β scaled-linear .00085–.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return ((1 - kept) / kept).sqrt().float()


def timestep(sigma: Tensor, flow: bool) -> Tensor:
    """What the network is told of σ (B,): 1000 σ of a flow, else the training step whose σ is nearest, long."""
    if flow:
        return sigma * 1000
    grid = ddpm_sigmas().to(sigma.device).log()
    return (sigma.log()[:, None] - grid[None]).abs().argmin(1)
