"""Pretrain tiny-unet: ε-prediction with SD1.5's noise schedule."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from .pretraining import Batch, Latents, Schedule, pretrain
from .split import Split
from .text_encoder import TextEncoder
from .unet import TinyUNet, alphas_cumprod


class Pretrained(nn.Module):
    """The UNet, and the text encoder that it is trained with and that stays as it is."""

    channels = 4

    def __init__(self, text: TextEncoder) -> None:
        super().__init__()
        self.unet = TinyUNet()
        self.text = text.requires_grad_(False)

    def sigmas(self, steps: int) -> Tensor:
        """The host's `normal` scheduler: `steps` σ, evenly in time, then 0."""
        table = _sigma_table()[torch.linspace(999, 0, steps).round().long()]
        return torch.cat([table.float(), torch.zeros(1)])

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at the first σ."""
        return noise * (sigma**2 + 1).sqrt()

    def condition(self, tokens: list[list[int]]) -> tuple[Tensor, ...]:
        """What `slope` is told of the captions."""
        encoded = self.text(tokens)
        return encoded.context(), encoded.bias

    def slope(self, x: Tensor, sigma: Tensor, condition: tuple[Tensor, ...]) -> Tensor:
        """dx/dσ (B, 4, h, w) of the probability flow: the predicted ε."""
        time = (_sigma_table() - float(sigma)).abs().argmin()
        with torch.autocast(x.device.type, torch.bfloat16):
            predicted = self.unet(x / (sigma**2 + 1).sqrt(), time.repeat(len(x)).to(x.device), *condition)
        return predicted.float()  # type: ignore[no-any-return]


def _sigma_table() -> Tensor:
    alpha_bar = alphas_cumprod()
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def train_unet(
    text: TextEncoder,
    latents: Latents,
    split: Split,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int = 12000,
    batch: int = 16,
    learning_rate: float = 4e-4,
    snr_range: tuple[float, float] = (1.0, 5.0),
    save_every: int = 250,
    device: str = "cpu",
    seed: int = 0,
) -> Pretrained:
    """ε-MSE; returns the moving average.

    The weight of the error in x₀ is the SNR kept within `snr_range`: the upper bound is min-SNR (Hang et al. 2023), the
    lower one truncated SNR (Salimans & Ho 2022). Without the lower bound the noisiest steps, which alone choose
    between styles, weigh 1/200 of the others and the caption's style is learned last.
    """
    torch.manual_seed(seed)
    model = Pretrained(text).to(device)
    model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    alpha_bar = alphas_cumprod().to(device)
    snr = alpha_bar / (1 - alpha_bar)
    weights = (snr.clamp(*snr_range) / snr).float()

    def loss(model: Pretrained, drawn: Batch) -> Tensor:
        t = (drawn.time * 1000).long()
        mix = alpha_bar[t].float()[:, None, None, None]
        noisy = mix.sqrt() * drawn.clean + (1 - mix).sqrt() * drawn.noise
        with torch.autocast(device, torch.bfloat16):
            with torch.no_grad():
                encoded = model.text(drawn.tokens, ends=4, rng=drawn.rng)
            predicted = model.unet(noisy, t, encoded.context(), encoded.bias).float()
        errors: Tensor = (predicted - drawn.noise).square().mean((1, 2, 3))
        return (errors * weights[t]).mean()

    plan = Schedule(steps, batch, learning_rate, save_every=save_every, device=device, seed=seed)
    return pretrain(model, loss, latents, split, tokenizer, folder / "unet", plan)
