"""Train the tiny VAE: seeded, resumable, bf16 autocast."""

from __future__ import annotations

import copy
import logging
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from .dataset import BACKGROUNDS, WHITE, composite_batch, plain_batch
from .resume import load_progress, save_progress
from .vae import TinyVAE, psnr

logger = logging.getLogger(__name__)


def _draw_batch(rng: np.random.Generator, rgba: NDArray[np.uint8], size: int) -> Tensor:
    picked = rgba[rng.integers(len(rgba), size=size)]
    colours = [
        WHITE if rng.random() < 0.6 else list(BACKGROUNDS.values())[rng.integers(len(BACKGROUNDS))] for _ in range(size)
    ]
    return composite_batch(picked, colours, list(rng.random(size) < 0.5), rng.integers(-4, 5, size=(size, 2)))


@torch.no_grad()
def held_out_psnr(vae: TinyVAE, rgba: NDArray[np.uint8]) -> Tensor:
    """PSNR of each picture on white, dB, through the autoencoder as shipped (fp32)."""
    pictures = plain_batch(rgba)
    return torch.cat([psnr(vae.decode(vae.encode(part)).clamp(0, 1), part) for part in torch.split(pictures, 64)])


def train_vae(
    rgba: NDArray[np.uint8],
    held_out: NDArray[np.uint8],
    folder: Path,
    steps: int = 7000,
    batch: int = 16,
    learning_rate: float = 1e-3,
    latent_noise: float = 0.05,
    device: str = "cpu",
    seed: int = 0,
    start: TinyVAE | None = None,
) -> TinyVAE:
    """Minimise MSE (+ a little L1 for edges); latents are kept near unit std and slightly noisy, so that diffusion's
    small errors stay small. Returns the moving average of the weights, calibrated. `start`: weights to go on from."""
    torch.manual_seed(seed)
    vae: TinyVAE = (start or TinyVAE()).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    channels = vae.latents.channels
    average: TinyVAE = copy.deepcopy(vae)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-3)
    first = load_progress(folder / "vae", {"model": vae, "average": average, "optimizer": optimizer})
    for step in range(first, steps):
        rng = np.random.default_rng((seed, 1, step))
        pictures = _draw_batch(rng, rgba, batch).to(device, memory_format=torch.channels_last)
        generator = torch.Generator().manual_seed(seed * 10**6 + step)
        noise = torch.randn(batch, channels, 8, 8, generator=generator).to(device)
        for group in optimizer.param_groups:
            warm = min(1.0, (step + 1) / 200)
            group["lr"] = learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-6
        with torch.autocast(device, torch.bfloat16):
            latents = vae.encode(pictures)
            result = vae.decode(latents + latent_noise * noise).float()
        latents = latents.float()
        by_channel = latents.transpose(0, 1).flatten(1)
        spread = by_channel.mean(1).square().mean() + (by_channel.std(1) - 1).square().mean()
        loss = functional.mse_loss(result, pictures) + 0.03 * functional.l1_loss(result, pictures) + 1e-3 * spread
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(vae.parameters()), 1 - decay)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_progress(folder / "vae", step + 1, {"model": vae, "average": average, "optimizer": optimizer})
            score = held_out_psnr(average, held_out[::7]).mean()
            logger.info("vae step %d loss %.5f held-out %.2f dB", step + 1, float(loss.detach()), float(score))
    average.calibrate(plain_batch(rgba[::7]).to(device))  # 7: coprime to the number of styles
    return average
