"""Draw pictures with tiny-unet without a host: Euler over σ with classifier-free guidance, as KSampler's `euler`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from .text import tokenize
from .train_unet import Pretrained
from .unet import alphas_cumprod
from .vae import TinyVAE


@torch.no_grad()
def draw_pictures(
    model: Pretrained,
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
    alpha_bar = alphas_cumprod()
    table = ((1 - alpha_bar) / alpha_bar).sqrt()
    times = torch.linspace(999, 0, steps).round().long()
    sigmas = torch.cat([table[times].float(), torch.zeros(1)]).to(device)
    noise = torch.randn(len(prompts), 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    tokens = tokenize(tokenizer, prompts)
    drawn = []
    for start in range(0, len(prompts), batch):
        part = tokens[start : start + batch]
        x = noise[start : start + batch].to(device) * (sigmas[0] ** 2 + 1).sqrt()
        context, bias = model.words([*part, *([[]] * len(part))])
        for i, time in enumerate(times.tolist()):
            scaled = (x / (sigmas[i] ** 2 + 1).sqrt()).repeat(2, 1, 1, 1)
            with torch.autocast(device, torch.bfloat16):
                conditional, empty = (
                    model.unet(scaled, torch.full((len(scaled),), time, device=device), context, bias).float().chunk(2)
                )
            x = x + (empty + guidance * (conditional - empty)) * (sigmas[i + 1] - sigmas[i])
        drawn.append(vae.from_model_latents(x).cpu())
    return torch.cat(drawn)
