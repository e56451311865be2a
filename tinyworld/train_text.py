"""Pretrain the text encoder: what a caption ends with must tell the picture, linearly.

A caption's END, through a linear head that is thrown away, is regressed on the clean latents of its picture. So the
encoder meets every subject × style pair hundreds of times in minutes, and the denoisers, which it is then frozen for,
need not learn by denoising what the words mean together. It plays the part of CLIP's training on captioned pictures.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from .pretraining import Batch, Latents, Schedule, caption_vocabulary, pretrain
from .split import Split
from .text import WIDTH
from .text_encoder import TextEncoder


class Describing(nn.Module):
    """The encoder and the head that reads latents (C, 8, 8) from an END."""

    def __init__(self, ids: list[int], mean: Tensor, seed: int = 0) -> None:
        super().__init__()
        self.text = TextEncoder(ids, seed)
        self.head = nn.Linear(WIDTH, mean.numel())
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.copy_(mean.flatten())


def train_text(
    latents: Latents,
    split: Split,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int = 3000,
    batch: int = 96,
    learning_rate: float = 1e-3,
    device: str = "cpu",
    seed: int = 0,
) -> TextEncoder:
    """Mean squared error of the latents. Captions that name no style, or the class alone, keep it above zero."""
    torch.manual_seed(seed)
    model = Describing(caption_vocabulary(tokenizer, split), latents.table[:, 0].mean(0), seed).to(device)

    def loss(model: Describing, drawn: Batch) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            ending = model.text(drawn.tokens, ends=2, rng=drawn.rng).context()[:, -1].float()
        error: Tensor = model.head(ending) - drawn.clean.flatten(1)
        return error.square().mean()

    plan = Schedule(steps, batch, learning_rate, warm_up=200, drop_caption=0.0, device=device, seed=seed)
    return pretrain(model, loss, latents, split, tokenizer, folder / "text", plan).text
