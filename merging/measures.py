"""How the LoRAs of one layer stand to one another: norms, cosines, and signs that disagree, beside chance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .stack import LayerStack


@dataclass(frozen=True)
class SignConflict:
    """share: of all pairs of entries at one place, of two LoRAs and neither 0, those of opposite sign; NaN where there
    are none. chance: what it would be if signs were drawn independently, each LoRA with its own share of positive ones;
    about 0.5, which is therefore no sign of a conflict.
    """

    share: float
    chance: float


UNMEASURED = SignConflict(math.nan, math.nan)


def sign_conflict(stack: LayerStack) -> SignConflict:
    """Over all pairs of the LoRAs used, with the signs of their weights; one ΔW at a time."""
    positive = torch.zeros(stack.shape, dtype=torch.int32)
    negative = torch.zeros(stack.shape, dtype=torch.int32)
    shares = []
    for i in stack.used:
        delta = stack.delta(i) * math.copysign(1.0, stack.weights[i])
        plus, minus = delta > 0, delta < 0
        positive += plus
        negative += minus
        if counted := int(plus.sum()) + int(minus.sum()):
            shares.append(int(plus.sum()) / counted)
    both = (positive + negative).to(torch.float64)
    pairs = float((both * (both - 1) / 2).sum())
    opposite = float((positive.to(torch.float64) * negative).sum())
    n = len(shares)
    # Σ_{i<j} pᵢ(1−pⱼ) + (1−pᵢ)pⱼ is (Σp)(Σ1−p) − Σ p(1−p)
    expected = math.fsum(shares) * math.fsum(1 - p for p in shares) - math.fsum(p * (1 - p) for p in shares)
    return SignConflict(opposite / pairs if pairs else math.nan, expected / (n * (n - 1) / 2) if n > 1 else math.nan)


def mean_cosine(gram: Tensor, weights: Tensor) -> float:
    """The mean over all pairs of ⟨wᵢΔWᵢ, wⱼΔWⱼ⟩ / (‖·‖‖·‖), −1 to 1; NaN where fewer than two are not 0.

    gram: (n, n). Unrelated LoRAs have about 0.
    """
    gram = gram * weights[:, None] * weights
    norms = gram.diagonal().clamp_min(0).sqrt()
    there = norms > 0
    n = int(there.sum())
    if n < 2:
        return math.nan
    cosines = gram[there][:, there] / torch.outer(norms[there], norms[there])
    return float((cosines.sum() - cosines.diagonal().sum()) / (n * (n - 1)))
