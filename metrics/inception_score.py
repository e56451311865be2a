"""Inception score: are the pictures each clearly of something, and all together of many things?

Salimans et al. 2016, arXiv 1606.03498, section 4: exp of the mean KL(p(y | x) ‖ p(y)), where p(y) is the mean of the
p(y | x); in splits, as their code. p(y | x) comes from the classes of the Inception network of 2015, of its logits
without the bias, as torch-fidelity has it.

It knows neither references nor prompts, and asks for many classes: of one subject it says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class InceptionScore:
    """From 1 (all alike, or none of anything) to the number of classes; higher. `spread`: standard deviation over
    `splits` (divisor n), None where there was one. `pictures`: in all; a split's score cannot exceed its pictures."""

    score: float
    spread: float | None
    splits: int
    pictures: int

    @property
    def warning(self) -> str:
        """What a reader must be told; empty from 5000 pictures on, a tenth of the usual set."""
        if self.pictures >= 5000:
            return ""
        return f"{self.pictures} pictures in {self.splits} splits: low for want of pictures; of one subject it is void"


def inception_score(logits: Tensor, splits: int = 10, seed: int = 0) -> InceptionScore:
    """The score of logits (N, classes).

    Args:
        splits: parts, as even as N allows; never more than N.
        seed: which pictures come into which split.

    Raises:
        ValueError: no pictures, fewer than two classes, NaN, or no split.
    """
    if logits.ndim != 2 or len(logits) == 0 or logits.shape[1] < 2 or splits < 1:
        raise ValueError(
            f"expected logits (pictures, classes) and 1 split or more, got {tuple(logits.shape)}, {splits}"
        )
    if not logits.isfinite().all():
        raise ValueError("the logits hold NaN or infinity; are the pictures in [0, 1]?")
    splits = min(splits, len(logits))
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits.device)
    log_p = logits.detach().to(torch.float64)[order].log_softmax(dim=1)
    scores = torch.stack([_score(part) for part in log_p.tensor_split(splits)])
    spread = float(scores.std(correction=0)) if splits > 1 else None
    return InceptionScore(float(scores.mean()), spread, splits, len(logits))


def mean_inception_score(logits: Tensor) -> float:
    """:func:`inception_score`'s score in ten splits."""
    return inception_score(logits).score


def _score(log_p: Tensor) -> Tensor:
    log_marginal = log_p.logsumexp(dim=0) - torch.log(torch.tensor(float(len(log_p)), dtype=log_p.dtype))
    return (log_p.exp() * (log_p - log_marginal)).sum(dim=1).mean().exp()
