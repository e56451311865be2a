"""DARE: drop at random and rescale (Yu et al. 2023, arXiv 2311.03099, §3.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .ties import Votes, disjoint_mean, elect_sign
from .trim import check_share, total


def drop_and_rescale(delta: Tensor, density: float, chance: torch.Generator) -> Tensor:
    """(m ∘ ΔW) / density with m ~ Bernoulli(density) for each entry, so that the expectation is ΔW.

    density: (0, 1], 1 − p of the paper. The variance of an entry is its square times (1 − d) / d; so the relative error
    of one ΔW is about √((1 − d) / d). chance: on the CPU. peft does the same; mergekit rescales so that the L1 norm
    stays, which is not without bias.
    """
    check_share("density", density)
    if density == 1:
        return delta
    mask = torch.bernoulli(torch.full(delta.shape, density), generator=chance)
    return delta * mask.to(delta.device) / density


def dare(deltas: Iterable[Tensor], density: float, chances: Sequence[torch.Generator]) -> Tensor:
    """Σᵢ of what is left of each: DARE with task arithmetic. deltas: n times (…), each already times its weight.

    chances: one generator for each. As peft's ``dare_linear``.
    """
    return total(drop_and_rescale(delta, density, chance) for delta, chance in zip(deltas, chances, strict=True))


def dare_ties(deltas: Iterable[Tensor], density: float, majority: str, chances: Sequence[torch.Generator]) -> Tensor:
    """DARE in place of TIES' trimming, then its election and disjoint mean; see ``ties`` for what differs elsewhere.

    A mean, as of TIES. peft's ``dare_ties`` is the same where every weight is 1.
    """
    votes = Votes(drop_and_rescale(delta, density, chance) for delta, chance in zip(deltas, chances, strict=True))
    return disjoint_mean(votes, elect_sign(votes, majority))
