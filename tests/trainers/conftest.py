"""A toy Denoiser, small enough to differentiate numerically."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers.dataset import Example, TrainingSet


class ToyBlock(nn.Module):
    """Looks like a transformer block to targets.py and recompute.py: attention, feed-forward, a conv."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(channels, channels), "to_k": nn.Linear(channels, channels)})
        self.ff = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        tokens = x.flatten(2).transpose(1, 2)
        tokens = tokens + torch.tanh(self.attn1["to_q"](tokens)) * torch.sigmoid(self.attn1["to_k"](tokens))
        tokens = tokens + self.ff(tokens)
        return self.conv(tokens.transpose(1, 2).reshape(x.shape))


class ToyNet(nn.Module):
    """(B, C, h, w), (B,), (B,) -> (B, C, h, w)."""

    def __init__(self, channels: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(ToyBlock(channels) for _ in range(blocks))
        self.embed = nn.Linear(2, channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
        x = x + self.embed(torch.stack([sigma.log(), cond], dim=1))[:, :, None, None]
        for block in self.transformer_blocks:
            x = block(x)
        return self.dropout(x)


class ToyDenoiser:
    """ε, v and flow over :class:`ToyNet`; a condition is a float."""

    def __init__(self, parameterisation: str = "eps", dtype: torch.dtype = torch.float32, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module = ToyNet().to(dtype).eval()
        self.parameterisation = parameterisation
        self.sigmas = torch.linspace(0.01, 1, 50) if parameterisation == "flow" else torch.logspace(-1.5, 1.1, 50)
        self.device = torch.device("cpu")
        self.dtype = dtype
        self.seen: list[object] = []
        self.calls = 0

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        return (1 - s) * latents + s * noise if self.parameterisation == "flow" else latents + s * noise

    def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[object]) -> Tensor:
        self.calls += 1
        self.seen += conds
        s = sigma.view(-1, 1, 1, 1)
        scaled = noisy if self.parameterisation == "flow" else noisy / (1 + s**2).sqrt()
        out = self.module(scaled.to(self.dtype), sigma.to(self.dtype), torch.tensor(conds, dtype=self.dtype))
        out = out if self.dtype == torch.float64 else out.float()
        if self.parameterisation == "v":
            return noisy / (1 + s**2) - out * s / (1 + s**2).sqrt()
        return noisy - s * out


def toy_data(count: int = 5, *, flip: bool = False, masked: bool = False, size: int = 4) -> TrainingSet:
    """Latents in two buckets, conditions 1, 2, …; the empty condition is 0."""
    chance = torch.Generator().manual_seed(7)
    examples = []
    for number in range(count):
        latents = torch.randn(4, size, size + 2 * (number % 2), generator=chance)
        mask = (torch.rand(latents.shape[-2:], generator=chance) > 0.4).float() if masked and number != 1 else None
        examples.append(Example(latents, latents.flip(-1) if flip else None, float(number + 1), mask))
    return TrainingSet(tuple(examples), 0.0)


@pytest.fixture(scope="session")
def toy() -> type[ToyDenoiser]:
    """The toy's class: ``toy("v")`` makes a new one."""
    return ToyDenoiser


@pytest.fixture(scope="session")
def data() -> Callable[..., TrainingSet]:
    """``data(count, flip=…, masked=…)`` makes a toy training set."""
    return toy_data
