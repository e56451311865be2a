"""DELLA-Merging: small entries are dropped more often (Deep et al. 2024, arXiv 2406.11617, §2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .ties import Votes, disjoint_mean, elect_sign
from .trim import check_share


def keep_probability(delta: Tensor, density: float, epsilon: float) -> Tensor:
    """(out, …) 1 − pᵢ of each entry: the largest of a row density + ε/2, the smallest density − ε/2, evenly between.

    The paper ranks the entries that meet in one output, that is of one row, and gives drop probabilities with the mean
    p = 1 − density over a range of width ε. delta: (out, …); of one dimension it is a single row. Equal magnitudes are
    ranked in the order in which they stand. mergekit's epsilon is half of this one.
    Raises ValueError where a probability would leave [0, 1] or be 0.
    """
    check_share("density", density)
    if not (epsilon >= 0 and density - epsilon / 2 > 0 and density + epsilon / 2 <= 1):
        raise ValueError(
            f"epsilon is {epsilon} and density {density}; expected epsilon ≥ 0 with density − epsilon/2 above 0 and "
            "density + epsilon/2 at most 1"
        )
    rows = delta.flatten(1) if delta.ndim > 1 else delta[None]
    places = rows.abs().argsort(dim=1, stable=True).argsort(1).to(torch.float32)  # 0 for the smallest
    width = rows.shape[1]
    centred = places / (width - 1) - 0.5 if width > 1 else torch.zeros_like(places)
    return (density + epsilon * centred).reshape(delta.shape)


def magprune(delta: Tensor, density: float, epsilon: float, chance: torch.Generator) -> Tensor:
    """MAGPRUNE: each entry kept with its probability qᵢ and divided by it, so that the expectation is ΔW.

    mergekit does not divide by qᵢ; it rescales all entries alike, so that a norm stays.
    """
    probability = keep_probability(delta, density, epsilon)
    mask = torch.bernoulli(probability.cpu(), generator=chance).to(delta.device)
    return delta * mask / probability


def della(
    deltas: Iterable[Tensor], density: float, epsilon: float, majority: str, chances: Sequence[torch.Generator]
) -> Tensor:
    """Drop (MAGPRUNE), elect, fuse: the mean of those that have the elected sign, as in TIES.

    deltas: n times (…), each already times its weight. epsilon 0 is DARE-TIES.
    """
    votes = Votes(magprune(delta, density, epsilon, chance) for delta, chance in zip(deltas, chances, strict=True))
    return disjoint_mean(votes, elect_sign(votes, majority))
