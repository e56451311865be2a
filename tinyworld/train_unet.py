"""Pretrain tiny-unet on subject × style pictures: ε-loss, caption dropout, EMA; seeded and resumable."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from .dataset import BACKGROUNDS, WHITE, caption, draw_caption, plain_batch, words
from .resume import load_progress, save_progress
from .split import Split
from .text import WordTable, tokenize
from .unet import TinyUNet, alphas_cumprod
from .vae import TinyVAE

logger = logging.getLogger(__name__)
COLOURS: tuple[str | None, ...] = (None, *BACKGROUNDS)


@dataclass(frozen=True)
class Latents:
    """Model latents of every pretraining picture on every background: `table[pair, colour]` is (4, 8, 8)."""

    table: Tensor
    pairs: tuple[tuple[str, str], ...]  # (subject, style)


@torch.no_grad()
def encode_all(
    vae: TinyVAE, pictures: dict[tuple[str, str], NDArray[np.uint8]], pairs: tuple[tuple[str, str], ...], cache: Path
) -> Latents:
    vae_sum = float(sum(t.double().abs().sum() for t in vae.state_dict().values()))
    key = {"pairs": [list(pair) for pair in pairs], "vae": round(vae_sum, 3)}
    if cache.exists():
        saved = torch.load(cache, weights_only=True)
        if saved["key"] == key:
            return Latents(saved["table"], pairs)
        logger.info("%s is of another VAE or split: encoding again", cache.name)
    rgba = np.stack([pictures[pair] for pair in pairs])
    columns = []
    for colour in COLOURS:
        batch = plain_batch(rgba, BACKGROUNDS[colour] if colour else WHITE)
        columns.append(torch.cat([vae.model_latents(part) for part in torch.split(batch, 50)]))
    temporary = cache.with_suffix(".tmp")
    torch.save({"key": key, "table": torch.stack(columns, 1)}, temporary)
    temporary.replace(cache)
    return Latents(torch.stack(columns, 1), pairs)


def caption_vocabulary(tokenizer: CLIPTokenizer, split: Split) -> list[int]:
    """Token ids of every word that a pretraining caption can hold."""
    subjects = [words(subject) for subject in split.pretrain_subjects] + sorted(set(split.class_of.values()))
    texts = [
        caption(subject, style, colour, template)
        for subject in subjects
        for template in range(3)
        for style, colour in [(None, None), *zip(split.pretrain_styles, [*BACKGROUNDS], strict=True)]
    ]
    return sorted({token for ids in tokenize(tokenizer, texts) for token in ids})


class Pretrained(nn.Module):
    """What is trained and shipped: the UNet and the word rows."""

    def __init__(self, ids: list[int]) -> None:
        super().__init__()
        self.unet = TinyUNet()
        self.words = WordTable(ids)


def train_unet(
    latents: Latents,
    split: Split,
    tokenizer: CLIPTokenizer,
    folder: Path,
    steps: int = 12000,
    batch: int = 16,
    learning_rate: float = 4e-4,
    drop_caption: float = 0.1,
    coloured: float = 0.3,
    min_snr_gamma: float = 5.0,
    save_every: int = 250,
    device: str = "cpu",
    seed: int = 0,
) -> Pretrained:
    """ε-MSE with min-SNR weights (Hang et al. 2023); AdamW, warm-up, cosine; returns the moving average."""
    torch.manual_seed(seed)
    model = Pretrained(caption_vocabulary(tokenizer, split)).to(device)
    model.unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    parts = {"model": model, "average": average, "optimizer": optimizer}
    first = load_progress(folder / "unet", parts)
    alpha_bar = alphas_cumprod().to(device)
    snr = alpha_bar / (1 - alpha_bar)
    weights = (snr.clamp(max=min_snr_gamma) / snr).float()
    table = latents.table.to(device)
    tokens_of: dict[str, list[int]] = {}
    running = 0.0
    for step in range(first, steps):
        rng = np.random.default_rng((seed, 2, step))
        picked = rng.integers(len(latents.pairs), size=batch)
        colours = np.where(rng.random(batch) < coloured, rng.integers(1, len(COLOURS), size=batch), 0)
        texts = []
        for pair, colour in zip(picked, colours, strict=True):
            subject, style = latents.pairs[pair]
            text = draw_caption(rng, subject, split.class_of[subject], style, COLOURS[colour])
            texts.append("" if rng.random() < drop_caption else text)
        unseen = [text for text in texts if text not in tokens_of]
        if unseen:
            tokens_of.update(zip(unseen, tokenize(tokenizer, unseen), strict=True))
        # stratified timesteps: the same distribution, a quieter gradient
        t = torch.from_numpy((rng.permutation(batch) + rng.random(batch)) / batch * 1000).long().to(device)
        clean = table[torch.from_numpy(picked), torch.from_numpy(colours)]
        noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32)).to(device)
        mix = alpha_bar[t].float()[:, None, None, None]
        noisy = mix.sqrt() * clean + (1 - mix).sqrt() * noise
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = learning_rate * min(1.0, (step + 1) / 300) * cosine + 1e-6
        context, bias = model.words([tokens_of[text] for text in texts])
        with torch.autocast(device, torch.bfloat16):
            predicted = model.unet(noisy, t, context, bias).float()
        loss = ((predicted - noise).square().mean((1, 2, 3)) * weights[t]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += float(loss.detach())
        if (step + 1) % 4 == 0:
            decay = min(0.9995, (1 + step) / (10 + step)) ** 4
            with torch.no_grad():
                torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        if (step + 1) % save_every == 0 or step + 1 == steps:
            save_progress(folder / "unet", step + 1, parts)
            logger.info("unet step %d loss %.4f", step + 1, running / save_every)
            running = 0.0
    return average
