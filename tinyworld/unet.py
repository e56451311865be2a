"""`tiny-unet`: an SD1.5-family UNet (Rombach et al. 2022, arXiv 2112.10752) of two levels, 39.6M parameters.

Module names are those of the original checkpoints, so that the host loads the weights as they are. It differs from
SD1.5 in depth alone: channel_mult (1, 1), one res block a level, attention on both levels, one res block in the middle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH = 320
CONTEXT = 768
HEADS = 8


class ResBlock(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(32, inside), nn.SiLU(), nn.Conv2d(inside, outside, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(4 * WIDTH, outside))
        last = nn.Conv2d(outside, outside, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, outside), nn.SiLU(), nn.Dropout(0), last)
        self.skip_connection = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = self.in_layers(x) + self.emb_layers(embedded)[..., None, None]
        y: Tensor = self.skip_connection(x) + self.out_layers(h)
        return y


class Attention(nn.Module):
    def __init__(self, context: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(WIDTH, WIDTH, bias=False)
        self.to_k = nn.Linear(context, WIDTH, bias=False)
        self.to_v = nn.Linear(context, WIDTH, bias=False)
        self.to_out = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0))

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        y: Tensor = self.to_out(mixed.transpose(1, 2).flatten(2))
        return y


class GEGLU(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 8 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        y: Tensor = value * functional.gelu(gate)
        return y


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(), nn.Dropout(0), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net(x)
        return y


class TransformerBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn1, self.attn2, self.ff = Attention(WIDTH), Attention(CONTEXT), FeedForward()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context, bias)
        y: Tensor = x + self.ff(self.norm3(x))
        return y


class SpatialTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, WIDTH, eps=1e-6)
        self.proj_in = nn.Conv2d(WIDTH, WIDTH, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock()])
        self.proj_out = nn.Conv2d(WIDTH, WIDTH, 1)
        nn.init.zeros_(self.proj_out.weight)
        assert self.proj_out.bias is not None
        nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        h = self.proj_in(self.norm(x)).flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            h = block(h, context, bias)
        y: Tensor = x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[-2:]))
        return y


class Downsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.op = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.op(x)
        return y


class Upsample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))
        return y


def timestep_embedding(timesteps: Tensor, width: int = WIDTH) -> Tensor:
    """Sinusoidal embedding, cosines first; (B,) -> (B, width)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TinyUNet(nn.Module):
    """ε-prediction: (B, 4, h, w) noisy latents (h, w even), (B,) timesteps 0–999, (B, n, 768) context -> ε."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.SiLU(), nn.Linear(4 * WIDTH, 4 * WIDTH))
        self.input_blocks = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(4, WIDTH, 3, padding=1)]),
                nn.ModuleList([ResBlock(WIDTH, WIDTH), SpatialTransformer()]),
                nn.ModuleList([Downsample()]),
                nn.ModuleList([ResBlock(WIDTH, WIDTH), SpatialTransformer()]),
            ]
        )
        self.middle_block = nn.ModuleList([ResBlock(WIDTH, WIDTH)])
        self.output_blocks = nn.ModuleList(
            nn.ModuleList([ResBlock(2 * WIDTH, WIDTH), SpatialTransformer(), *([Upsample()] if i == 1 else [])])
            for i in range(4)
        )
        out = nn.Conv2d(WIDTH, 4, 3, padding=1)
        nn.init.zeros_(out.weight)
        assert out.bias is not None
        nn.init.zeros_(out.bias)
        self.out = nn.Sequential(nn.GroupNorm(32, WIDTH), nn.SiLU(), out)

    def _run(self, layers: nn.Module, x: Tensor, embedded: Tensor, context: Tensor, bias: Tensor | None) -> Tensor:
        assert isinstance(layers, nn.ModuleList)
        for layer in layers:
            if isinstance(layer, ResBlock):
                x = layer(x, embedded)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context, bias)
            else:
                x = layer(x)
        return x

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias` (B, 1, 1, n) is added to the cross-attention's logits: log m stands for a token repeated m times."""
        embedded = self.time_embed(timestep_embedding(timesteps))
        skips = []
        for layers in self.input_blocks:
            x = self._run(layers, x, embedded, context, bias)
            skips.append(x)
        x = self._run(self.middle_block, x, embedded, context, bias)
        for layers in self.output_blocks:
            x = self._run(layers, torch.cat([x, skips.pop()], dim=1), embedded, context, bias)
        y: Tensor = self.out(x)
        return y


def alphas_cumprod(steps: int = 1000) -> Tensor:
    """ᾱ_t of SD1.5's schedule: β linear in its square root from .00085 to .012; float64 (steps,)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)
