"""The stream of (x0, ε, σ, picture) that every contender sees, step by step.

It is the one Likeness' trainer draws by itself: its loop runs once on a network of a few weights and what it asks of
`noise_scaling` is written down. The contender that runs the same loop on the real model is checked to draw the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from base_model import LATENT, TEXT
from safetensors.torch import load_file, save_file
from torch import Tensor

PICTURES = 2  # the host's node 0.3.75 needs a list of latents: with one alone it dies on an unbound `multi_res`


@dataclass(frozen=True)
class Stream:
    """x0, noise: (steps, 4, 16, 16); sigma: (steps,); picture: (steps,) int; text: (pictures, 77, 768)."""

    x0: Tensor
    noise: Tensor
    sigma: Tensor
    picture: Tensor
    latents: Tensor
    text: Tensor

    def save(self, path: Path) -> None:
        save_file({k: v.contiguous() for k, v in vars(self).items()}, str(path))

    @classmethod
    def load(cls, path: Path) -> Stream:
        return cls(**load_file(str(path)))


def cached(seed: int) -> tuple[Tensor, Tensor]:
    """The cached latents (pictures, 4, 16, 16) and text embeddings (pictures, 77, 768), unit normal."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(PICTURES, *LATENT, generator=draw), torch.randn(PICTURES, *TEXT, generator=draw)


def ddpm_sigmas() -> Tensor:
    """The σ of Stable Diffusion's 1000 training steps, ascending: sqrt((1 - ᾱ) / ᾱ), β scaled-linear .00085–.012."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return ((1 - kept) / kept).sqrt().float()


def timestep(sigma: Tensor) -> Tensor:
    """The training step whose σ is nearest, (B,) long."""
    grid = ddpm_sigmas().log()
    return (sigma.log()[:, None] - grid[None]).abs().argmin(1)
