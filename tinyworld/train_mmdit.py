"""Pretrain tiny-mmdit: rectified flow with SD3's shift."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from .mmdit import CHANNELS, DEPTH, TinyMMDiT, shifted
from .pretraining import Batch, Latents, Schedule, pretrain
from .split import Split
from .text_encoder import Encoded, TextEncoder


class PretrainedFlow(nn.Module):
    """The transformer, and the text encoder that it is trained with and that stays as it is."""

    channels = CHANNELS

    def __init__(self, text: TextEncoder, depth: int = DEPTH) -> None:
        super().__init__()
        self.mmdit = TinyMMDiT(depth)
        self.text = text.requires_grad_(False)

    def sigmas(self, steps: int) -> Tensor:
        """The host's `normal` scheduler, which takes the last σ for a time and so shifts it once more; then 0."""
        last = float(shifted(torch.tensor(1e-3)))
        return torch.cat([shifted(torch.linspace(1, last, steps)), torch.zeros(1)])

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at the first σ, which is 1."""
        return noise * sigma

    def condition(self, tokens: list[list[int]]) -> tuple[Tensor, ...]:
        """What `slope` is told of the captions: context, pooled vector, bias."""
        return _told(self.text(tokens))

    def slope(self, x: Tensor, sigma: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """dx/dσ (B, 16, h, w): the predicted velocity. `sigma` is a scalar or (B,)."""
        with torch.autocast(x.device.type, torch.bfloat16):
            velocity = self.mmdit(x, (1000 * sigma).expand(len(x)), *condition)
        return velocity.float()  # type: ignore[no-any-return]


def _told(encoded: Encoded) -> tuple[Tensor, ...]:
    return encoded.states, encoded.pooled(), encoded.bias


def train_mmdit(
    text: TextEncoder,
    latents: Latents,
    split: Split,
    tokenizer: CLIPTokenizer,
    folder: Path,
    plan: Schedule,
    depth: int = DEPTH,
) -> PretrainedFlow:
    """Velocity-MSE at uniform times, shifted as the sampler's are; returns the moving average.

    In x₀ the velocity's error weighs 1/σ² ≥ 1, so the noisiest steps, which choose subject and style, never fall
    behind, and the shift puts half of the steps above σ = 3/4.
    """
    torch.manual_seed(plan.seed)
    model = PretrainedFlow(text, depth).to(plan.device)

    def loss(model: PretrainedFlow, drawn: Batch) -> Tensor:
        sigma = shifted(drawn.time).float()
        mix = sigma[:, None, None, None]
        noisy = (1 - mix) * drawn.clean + mix * drawn.noise
        with torch.no_grad():
            told = _told(model.text(drawn.tokens, ends=4, rng=drawn.rng))
        velocity = model.slope(noisy, sigma, told)
        return (velocity - (drawn.noise - drawn.clean)).square().mean()

    return pretrain(model, loss, latents, split, tokenizer, folder / "mmdit", plan)
