"""KnOTS: merging in the space that the LoRAs share (Stoica et al. 2024, arXiv 2410.19735, §4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..lora.svd import EPS
from .stack import LayerStack
from .trim import total


def knots(stack: LayerStack, merge: Callable[[Iterable[Tensor]], Tensor]) -> tuple[Tensor, Tensor]:
    """up (out, k) and down (k, in), float32, of U · merge(ΣV₁ᵀ, ΣV₂ᵀ, …) with [ΔW₁ | ΔW₂ | …] = U Σ [V₁ᵀ | V₂ᵀ | …].

    merge: a method on n times (k, in), such as TIES; a linear one changes nothing. k is the rank of all together, at
    most Σr: the result is a LoRA without any compression. The ΔW are taken with their weights. U and Σ come from
    factors where Σr < out: the columns of U are those of the ups' concatenation, so that no ΔW is made.
    The signs of U's columns do not matter to methods that treat + and − alike; where singular values are equal, their
    order and rotation are the decomposition's choice, here as in the paper.
    """
    small = stack.rank_sum is not None and stack.rank_sum < stack.shape[0]
    basis, parts = _by_factors(stack) if small else (None, lambda: (d.to(torch.float64) for d in stack.weighted()))
    u = _left(parts)
    rights = ((u.T @ part).to(torch.float32) for part in parts())
    return (u if basis is None else basis @ u).to(torch.float32), merge(rights)


def _by_factors(stack: LayerStack) -> tuple[Tensor, Callable[[], Iterator[Tensor]]]:
    """With ups = QR, ΔWᵢ = Q (Rᵢ downᵢ): Q, and the Rᵢ downᵢ as often as asked."""
    pairs = [stack.factors(torch.eye(len(stack.parts))[i] * stack.weights[i]) for i in stack.used]
    q, r = torch.linalg.qr(torch.cat([up for up, _ in pairs], 1).to(torch.float64))
    columns = r.split([up.shape[1] for up, _ in pairs], 1)
    downs = [down for _, down in pairs]
    return q, lambda: (mine @ down.to(torch.float64) for mine, down in zip(columns, downs, strict=True))


def _left(parts: Callable[[], Iterator[Tensor]]) -> Tensor:
    """The left singular vectors of [parts₁ | parts₂ | …]: eigenvectors of Σ partsᵢ partsᵢᵀ, less what is rounding."""
    squares, u = torch.linalg.eigh(total(part @ part.T for part in parts()))
    squares, u = squares.flip(0), u.flip(1)
    kept = max(1, int((squares > squares[:1].clamp_min(0) * len(squares) * EPS).sum()))
    basis: Tensor = u[:, :kept]
    return basis
