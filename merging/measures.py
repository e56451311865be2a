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
    """Over all pairs of the LoRAs used, with the signs of their weights; one ΔW at a time.

    With S the sum of signs at a place and C the number that are not 0, (C² − S²) / 4 pairs are of opposite sign there,
    of C (C − 1) / 2.
    """
    sums, counts = torch.zeros(stack.shape), torch.zeros(stack.shape)
    shares = []
    for i in stack.used:
        signs = stack.delta(i).sign()
        turn = 1.0 if stack.weights[i] > 0 else -1.0
        total = turn * float(signs.sum(dtype=torch.float64))
        sums.add_(signs, alpha=turn)
        signs.abs_()
        counts += signs
        if counted := float(signs.sum(dtype=torch.float64)):
            shares.append((counted + total) / 2 / counted)
    squares = float(torch.linalg.vector_norm(counts, dtype=torch.float64)) ** 2
    pairs = (squares - float(counts.sum(dtype=torch.float64))) / 2
    opposite = (squares - float(torch.linalg.vector_norm(sums, dtype=torch.float64)) ** 2) / 4
    n = len(shares)
    # Σ_{i<j} pᵢ(1−pⱼ) + (1−pᵢ)pⱼ is (Σp)(Σ1−p) − Σ p(1−p)
    expected = math.fsum(shares) * math.fsum(1 - p for p in shares) - math.fsum(p * (1 - p) for p in shares)
    if n < 2 or pairs < 0.5:
        return UNMEASURED
    return SignConflict(min(1.0, max(0.0, opposite / pairs)), expected / (n * (n - 1) / 2))


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
