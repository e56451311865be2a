"""TIES-Merging: trim, elect sign, disjoint merge (Yadav et al. 2023, arXiv 2306.01708, §4.1 and algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from .trim import pieces, trim

MAJORITIES = ("total", "frequency")


class Votes:
    """Of each entry the sum and the number of those above 0, and of those below: all that is asked of n differences.

    So they are added one after the other, and one is held at a time.
    """

    def __init__(self, deltas: Iterable[Tensor]) -> None:
        """deltas: at least one, of one shape."""
        for number, delta in enumerate(deltas):
            if number == 0:
                self.plus, self.minus = (torch.zeros(delta.shape, dtype=delta.dtype) for _ in range(2))
                self.above, self.below = (torch.zeros(delta.shape, dtype=torch.int8) for _ in range(2))
            if number == torch.iinfo(torch.int8).max:  # until here a byte holds them, and is added four times as fast
                self.above, self.below = self.above.int(), self.below.int()
            sums = self.plus, self.minus, self.above, self.below
            for piece, plus, minus, above, below in pieces(delta.contiguous(), *sums):
                plus += piece.clamp_min(0)
                minus += piece.clamp_max(0)
                above += (piece > 0).view(torch.int8)
                below += (piece < 0).view(torch.int8)


def elect_sign(votes: Votes, majority: str = "total") -> Tensor:
    """(…) γ, +1 or −1 for each entry.

    majority: "total", the paper's: the sign of Σᵢ τᵢ, so that the larger movement wins; "frequency": of Σᵢ sgn τᵢ, so
    that the more LoRAs win. A sum of 0 counts as +1, as it does in peft and mergekit; the paper's own code takes the
    sign that most other entries have.
    Raises ValueError for another majority.
    """
    if majority not in MAJORITIES:
        raise ValueError(f"unknown majority {majority!r}; expected one of {', '.join(MAJORITIES)}")
    out = torch.empty_like(votes.plus)
    one, other = (votes.plus, votes.minus) if majority == "total" else (votes.above, votes.below)
    for new, plus, minus in pieces(out, one, other):
        new.copy_(plus + minus >= 0 if majority == "total" else plus >= minus).mul_(2).sub_(1)
    return out


def disjoint_mean(votes: Votes, sign: Tensor) -> Tensor:
    """(…) for each entry the mean over the LoRAs whose sign is the elected one; 0 where there is none.

    sign: (…). An entry of 0 is of neither sign, and is not counted.
    """
    out = torch.empty_like(votes.plus)
    every = out, sign.contiguous(), votes.plus, votes.minus, votes.above, votes.below
    for new, elected, plus, minus, above, below in pieces(*every):
        up = elected > 0
        down = ~up  # products with 0 and 1: torch.where is ten times as slow
        torch.add(plus * up, minus * down, out=new).div_((above * up + below * down).clamp_min_(1))
    return out


def ties(deltas: Iterable[Tensor], density: float, majority: str = "total") -> Tensor:
    """τ_m. deltas: n times (…), each already times its weight. density: (0, 1], the share kept of each.

    It is a MEAN, not a sum: with λ = 1, as in the paper, two LoRAs that agree give the strength of one.
    The paper has no weights. Here wτ is the difference that is merged, so that a negative weight turns its vote too.
    peft elects on the unweighted τ and divides by the count; mergekit elects on wτ and, by default, divides by the sum
    of the agreeing weights. All three are the same where every weight is 1. The paper's code trims the model as a
    whole (``magnitude_at``); this function, peft and mergekit trim each tensor.
    """
    votes = Votes(trim(delta, density) for delta in deltas)
    return disjoint_mean(votes, elect_sign(votes, majority))
