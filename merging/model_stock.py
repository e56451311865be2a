"""Model Stock: how far the mean is to be trusted (Jang, Yun & Han 2024, arXiv 2403.19522, §4, eq. 2 to 4)."""

from __future__ import annotations

import torch
from torch import Tensor


def ratio(cosine: float, n: int) -> float:
    """t = N cos θ / (1 + (N − 1) cos θ): 1 where all are the same, 0 where they have nothing in common.

    The paper has cos θ > 0; below 0 the geometry has no such point, and t is 0 here. mergekit lets it go below 0, where
    it merges the negative.
    """
    cosine = min(1.0, max(0.0, cosine))
    return n * cosine / (1 + (n - 1) * cosine)


def model_stock(gram: Tensor, weights: Tensor) -> Tensor:
    """(n,) coefficients of t · mean(wᵢΔWᵢ), the point nearest to the centre that the LoRAs scatter around.

    w_H = t w_avg + (1 − t) w₀ with ΔW = w − w₀. θ: the angle between two LoRAs; of more, the mean of all pairs' cosines
    (the paper leaves it open; mergekit does so too). Those without this layer are no sample of it and are left out.
    The paper's models are fine-tuned on ONE task from different seeds: unrelated LoRAs have cos θ ≈ 0, and next to
    nothing is left of them. gram: (n, n). weights: (n,), any sign; the paper has none.
    """
    gram = gram * weights[:, None] * weights
    norms = gram.diagonal().clamp_min(0).sqrt()
    there = norms > 0
    n = int(there.sum())
    if n < 2:
        return weights * there
    units = norms[there]
    cosines = gram[there][:, there] / torch.outer(units, units)
    cosine = float((cosines.sum() - n) / (n * (n - 1)))
    return weights * there * (ratio(cosine, n) / n)
