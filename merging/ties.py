"""TIES-Merging: trim, elect sign, disjoint merge (Yadav et al. 2023, arXiv 2306.01708, §4.1 and algorithm 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .trim import trim

MAJORITIES = ("total", "frequency")


def elect_sign(deltas: Tensor, majority: str = "total") -> Tensor:
    """(…) γ, +1 or −1 for each entry. deltas: (n, …).

    majority: "total", the paper's: the sign of Σᵢ τᵢ, so that the larger movement wins; "frequency": of Σᵢ sgn τᵢ, so
    that the more LoRAs win. A sum of 0 counts as +1, as it does in peft and mergekit; the paper's own code takes the
    sign that most other entries have.
    Raises ValueError for another majority.
    """
    if majority not in MAJORITIES:
        raise ValueError(f"unknown majority {majority!r}; expected one of {', '.join(MAJORITIES)}")
    votes = (deltas if majority == "total" else deltas.sign()).sum(0)
    return torch.where(votes >= 0, 1.0, -1.0).to(deltas.dtype)


def disjoint_mean(deltas: Tensor, sign: Tensor) -> Tensor:
    """(…) for each entry the mean over the LoRAs whose sign is the elected one; 0 where there is none.

    deltas: (n, …). sign: (…). An entry of 0 is of neither sign, and is not counted.
    """
    agree = deltas.sign() == sign
    return (deltas * agree).sum(0) / agree.sum(0).clamp_min(1)


def ties(deltas: Tensor, density: float, majority: str = "total") -> Tensor:
    """τ_m. deltas: (n, …), each already times its weight. density: (0, 1], the share kept of each.

    It is a MEAN, not a sum: with λ = 1, as in the paper, two LoRAs that agree give the strength of one.
    The paper has no weights. Here wτ is the difference that is merged, so that a negative weight turns its vote too.
    peft elects on the unweighted τ and divides by the count; mergekit elects on wτ and, by default, divides by the sum
    of the agreeing weights. All three are the same where every weight is 1. The paper's code trims the model as a
    whole (``magnitude_at``); this function, peft and mergekit trim each tensor.
    """
    trimmed = torch.stack([trim(delta, density) for delta in deltas])
    return disjoint_mean(trimmed, elect_sign(trimmed, majority))
