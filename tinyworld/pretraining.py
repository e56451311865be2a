"""Pretraining on subject × style pictures: the data, and the loop that every small model shares. Seeded, resumable."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPTokenizer

from .dataset import BACKGROUNDS, WHITE, caption, draw_caption, plain_batch, words
from .resume import load_progress, save_progress
from .split import Split
from .text import tokenize
from .vae import TinyVAE

logger = logging.getLogger(__name__)
COLOURS: tuple[str | None, ...] = (None, *BACKGROUNDS)
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Latents:
    """Model latents of every pretraining picture on every background: `table[pair, colour]` is (C, 8, 8)."""

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


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. Learning rate: warm-up, then cosine to 1e-6."""

    steps: int
    batch: int
    learning_rate: float
    warm_up: int = 300
    drop_caption: float = 0.1
    coloured: float = 0.3
    save_every: int = 250
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """What a step learns from: (B, C, 8, 8) latents and noise, times in [0, 1) float64, each caption's tokens, and
    the step's generator for what else is random."""

    clean: Tensor
    noise: Tensor
    time: Tensor
    tokens: list[list[int]]
    rng: np.random.Generator


class _Captions:
    """Tokens of captions, each asked of the tokenizer once."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer
        self.known: dict[str, list[int]] = {}

    def __call__(self, texts: list[str]) -> list[list[int]]:
        unseen = [text for text in texts if text not in self.known]
        if unseen:
            self.known.update(zip(unseen, tokenize(self.tokenizer, unseen), strict=True))
        return [self.known[text] for text in texts]


def _draw(latents: Latents, table: Tensor, split: Split, captions: _Captions, plan: Schedule, step: int) -> Batch:
    rng = np.random.default_rng((plan.seed, 2, step))
    picked = rng.integers(len(latents.pairs), size=plan.batch)
    coloured = rng.random(plan.batch) < plan.coloured
    colours = np.where(coloured, rng.integers(1, len(COLOURS), size=plan.batch), 0)
    texts = []
    for pair, colour in zip(picked, colours, strict=True):
        subject, style = latents.pairs[pair]
        text = draw_caption(rng, subject, split.class_of[subject], style, COLOURS[colour])
        texts.append("" if rng.random() < plan.drop_caption else text)
    # stratified times: the same distribution, a quieter gradient
    time = torch.from_numpy((rng.permutation(plan.batch) + rng.random(plan.batch)) / plan.batch)
    clean = table[torch.from_numpy(picked), torch.from_numpy(colours)]
    noise = torch.from_numpy(rng.standard_normal(clean.shape, np.float32))
    return Batch(clean, noise.to(plan.device), time.to(plan.device), captions(texts), rng)


def pretrain(
    model: Model,
    loss_of: Callable[[Model, Batch], Tensor],
    latents: Latents,
    split: Split,
    tokenizer: CLIPTokenizer,
    progress: Path,
    plan: Schedule,
) -> Model:
    """Minimise `loss_of` with AdamW; -> the moving average of the weights. `progress` is where it is saved.

    Parameters that want no gradient stay as they are.
    """
    trained: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    average = copy.deepcopy(model)
    averaged: list[Tensor] = [parameter for parameter in average.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    first = load_progress(progress, parts)
    table, captions = latents.table.to(plan.device), _Captions(tokenizer)
    running = 0.0
    for step in range(first, plan.steps):
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / plan.steps))
            group["lr"] = plan.learning_rate * min(1.0, (step + 1) / plan.warm_up) * cosine + 1e-6
        loss = loss_of(model, _draw(latents, table, split, captions, plan, step))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        running += float(loss.detach())
        if (step + 1) % 4 == 0:
            decay = min(0.9995, (1 + step) / (10 + step)) ** 4
            with torch.no_grad():
                torch._foreach_lerp_(averaged, trained, 1 - decay)
        if (step + 1) % plan.save_every == 0 or step + 1 == plan.steps:
            save_progress(progress, step + 1, parts)
            logger.info("%s step %d loss %.4f", progress.name, step + 1, running / plan.save_every)
            running = 0.0
    return average
