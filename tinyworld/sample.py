"""Draw pictures with a small model, without a host: Euler over σ with guidance, as KSampler's `euler`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .text import tokenize
from .vae import TinyVAE


class Drawable(Protocol):
    """A model as the sampler sees it, whatever it predicts: an ODE in σ."""

    channels: int

    def sigmas(self, steps: int) -> Tensor: ...
    def start(self, noise: Tensor, sigma: Tensor) -> Tensor: ...
    def condition(self, tokens: list[list[int]]) -> tuple[Tensor, ...]: ...
    def slope(self, x: Tensor, sigma: Tensor, condition: tuple[Tensor, ...]) -> Tensor: ...


@torch.no_grad()
def draw_pictures(
    model: Drawable,
    vae: TinyVAE,
    tokenizer: CLIPTokenizer,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = 20,
    guidance: float = 3.0,
    batch: int = 32,
    device: str = "cpu",
) -> Tensor:
    """Prompts -> (B, 3, 64, 64) in [0, 1]."""
    sigmas = model.sigmas(steps).to(device)
    noise = torch.randn(len(prompts), model.channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    tokens = tokenize(tokenizer, prompts)
    drawn = []
    for first in range(0, len(prompts), batch):
        part = tokens[first : first + batch]
        x = model.start(noise[first : first + batch].to(device), sigmas[0])
        condition = model.condition([*part, *([[]] * len(part))])
        for sigma, following in pairwise(sigmas):
            conditional, empty = model.slope(x.repeat(2, 1, 1, 1), sigma, condition).chunk(2)
            x = x + (empty + guidance * (conditional - empty)) * (following - sigma)
        drawn.append(vae.from_model_latents(x).cpu())
    return torch.cat(drawn)
