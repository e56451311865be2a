"""How well each picture shows its own prompt, by the network that is wired: CLIP's cosine, or ImageReward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...metrics.clip_score import prompt_cosines
from .reward_model import RewardModel


@dataclass(frozen=True)
class PromptScorer:
    """Prompts that the network has read.

    Attributes:
        metric: the name in ``metrics.registry``.
        notes: prompt -> empty, or that it was cut.
        scores: pictures (B, 3, H, W) in [0, 1], and one of the prompts for each -> (B,).
    """

    metric: str
    notes: dict[str, str]
    scores: Callable[[Tensor, Sequence[str]], Tensor]


def prompt_scorer(model: Any, prompts: Sequence[str]) -> PromptScorer:
    """Of a METRIC_MODEL; what it may refuse in the prompts, it refuses here.

    Raises:
        ValueError: it reads no prompts, or one is empty.
    """
    texts = list(dict.fromkeys(prompts))
    if isinstance(model, RewardModel):
        return PromptScorer("image_reward", dict(zip(texts, model.notes(texts), strict=True)), model.rewards)
    rows, notes = model.cut_text_features(texts)
    known = dict(zip(texts, rows, strict=True))

    def cosines(pictures: Tensor, own: Sequence[str]) -> Tensor:
        return prompt_cosines(model.features(pictures), torch.stack([known[text] for text in own]))

    return PromptScorer("clip_t", dict(zip(texts, notes, strict=True)), cosines)
