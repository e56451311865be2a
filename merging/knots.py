"""KnOTS: merging in the space that the LoRAs share (Stoica et al. 2024, arXiv 2410.19735, §4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..lora.svd import EPS
from .stack import LayerStack


def knots(stack: LayerStack, merge: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """up (out, k) and down (k, in), float32, of U · merge(ΣV₁ᵀ, ΣV₂ᵀ, …) with [ΔW₁ | ΔW₂ | …] = U Σ [V₁ᵀ | V₂ᵀ | …].

    merge: a method on (n, k, in), such as TIES; a linear one changes nothing. k is the rank of all together, at most
    Σr: the result is a LoRA without any compression. The ΔW are taken with their weights. U and Σ come from factors
    where ``stack.is_small``: the columns of U are those of the ups' concatenation, so that no ΔW is made.
    The signs of U's columns do not matter to methods that treat + and − alike; where singular values are equal, their
    order and rotation are the decomposition's choice, here as in the paper.
    """
    basis, rights = _by_factors(stack) if stack.is_small else _by_matrices(stack)
    return basis.to(torch.float32), merge(rights.to(torch.float32))


def _by_factors(stack: LayerStack) -> tuple[Tensor, Tensor]:
    """With ups = QR, ΔWᵢ = Q (Rᵢ downᵢ), and U is Q times the left singular vectors of [R₁down₁ | R₂down₂ | …]."""
    pairs = [stack.factors(torch.eye(len(stack.parts))[i] * stack.weights[i]) for i in stack.used]
    ups = torch.cat([up for up, _ in pairs], 1).to(torch.float64)
    q, r = torch.linalg.qr(ups)
    starts = [0]
    for up, _ in pairs:
        starts.append(starts[-1] + up.shape[1])
    small = [r[:, a : a + down.shape[0]] @ down.to(torch.float64) for a, (_, down) in zip(starts, pairs, strict=False)]
    return _rotate(q, torch.stack(small))


def _by_matrices(stack: LayerStack) -> tuple[Tensor, Tensor]:
    deltas = stack.weighted().to(torch.float64)
    return _rotate(torch.eye(deltas.shape[1], dtype=torch.float64), deltas)


def _rotate(basis: Tensor, parts: Tensor) -> tuple[Tensor, Tensor]:
    """(U, the ΣVᵢᵀ) of basis · partsᵢ, from the eigenvectors of Σ partsᵢ partsᵢᵀ, less what is below rounding."""
    squares, u = torch.linalg.eigh(torch.einsum("nki,nli->kl", parts, parts))
    squares, u = squares.flip(0), u.flip(1)
    kept = max(1, int((squares > squares[:1].clamp_min(0) * len(squares) * EPS).sum()))
    u = u[:, :kept]
    return basis @ u, u.T @ parts
