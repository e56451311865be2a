"""One layer of several LoRAs: the matrices that the methods work on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora.delta import LowRankDelta

Part = LowRankDelta | Tensor
"""ΔW (out, in · kh · kw) as two factors, or whole in float32; the change of a bias or norm as it is, (n,)."""


@dataclass(frozen=True)
class LayerStack:
    """ΔWᵢ and wᵢ of one layer.

    name: the canonical layer. parts: one for each LoRA, None where it leaves the layer alone (ΔW = 0); all of one size.
    weights: one for each LoRA, any finite number. kernel: (kh, kw) of a convolution, else ().
    """

    name: str
    parts: tuple[Part | None, ...]
    weights: tuple[float, ...]
    kernel: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in · kh · kw), or (n,)."""
        return next(tuple(int(n) for n in part.shape) for part in self.parts if part is not None)

    @property
    def used(self) -> tuple[int, ...]:
        """The numbers of the LoRAs that change the layer, with a weight that is not 0."""
        return tuple(i for i, part in enumerate(self.parts) if part is not None and self.weights[i] != 0)

    @property
    def ranks(self) -> tuple[int | None, ...]:
        """The rank of each; 0 where it leaves the layer alone, None where it is no low-rank pair."""
        return tuple(0 if p is None else p.rank if isinstance(p, LowRankDelta) else None for p in self.parts)

    @property
    def rank_sum(self) -> int | None:
        """Σr over those used, which is the rank of their concatenation; None where one is no low-rank pair."""
        ranks = [self.ranks[i] for i in self.used]
        return None if None in ranks else sum(rank for rank in ranks if rank is not None)

    @property
    def is_small(self) -> bool:
        """Whether the concatenated factors are of a rank below that of a full matrix, so that ΔW need not be made."""
        return len(self.shape) == 2 and self.rank_sum is not None and self.rank_sum < min(self.shape)

    def delta(self, index: int, times: float = 1.0) -> Tensor:
        """ΔW of one LoRA, without its weight but `times` as large, float32, shaped as ``shape``."""
        part = self.parts[index]
        if part is None:
            return torch.zeros(self.shape)
        if isinstance(part, Tensor):
            return part if times == 1 else part * times
        return (part.up.to(torch.float32) * (part.scale * times)) @ part.down.to(torch.float32)

    def weighted(self) -> Iterator[Tensor]:
        """The wᵢΔWᵢ of those used, in the order of ``used``, float32; each is made when it is asked for."""
        return (self.delta(i, self.weights[i]) for i in self.used)

    def gram(self) -> Tensor:
        """(n, n) ⟨ΔWᵢ, ΔWⱼ⟩ of all LoRAs without weights, float64; 0 where a LoRA leaves the layer alone.

        Of two pairs it is Σ (upᵢᵀupⱼ) ∘ (downᵢdownⱼᵀ): neither ΔW is made.
        """
        out = torch.zeros(len(self.parts), len(self.parts), dtype=torch.float64)
        parts = [_double(part) for part in self.parts]  # once, and not once a pair
        for i, one in enumerate(parts):
            for j, other in enumerate(parts[: i + 1]):
                if one is not None and other is not None:
                    out[i, j] = out[j, i] = _inner(one, other)
        return out

    def norms(self) -> tuple[float, ...]:
        """(n,) ‖wᵢΔWᵢ‖_F; 0 where a LoRA leaves the layer alone."""
        return tuple(
            0.0 if part is None else abs(weight) * _norm(part)
            for part, weight in zip(self.parts, self.weights, strict=True)
        )

    def factors(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """up (out, Σr) and down (Σr, in) with up · down = Σ cᵢΔWᵢ exactly, float32, by concatenation.

        [c₁s₁B₁ | c₂s₂B₂ | …] [A₁; A₂; …] has no cross terms (BᵢAⱼ), which (ΣB)(ΣA) has. Of each pair a power of two,
        which rounds nothing, is moved from one factor into the other, so that half precision holds both. coefficients:
        (n,) c. A LoRA whose c is 0 adds no columns. Raises ValueError where a part is no low-rank pair.
        """
        ups, downs = [], []
        for part, coefficient in zip(self.parts, coefficients.tolist(), strict=True):
            if part is None or coefficient == 0:
                continue
            if not isinstance(part, LowRankDelta):
                raise ValueError(f"the layer {self.name} of one LoRA is no low-rank pair and cannot be concatenated")
            up, down = part.up.to(torch.float32) * (part.scale * coefficient), part.down.to(torch.float32)
            large, small = float(down.norm()), float(up.norm())
            shift = 2.0 ** round(math.log2(large / small) / 2) if large > 0 and small > 0 else 1.0
            ups.append(up * shift)
            downs.append(down / shift)
        if not ups:
            return torch.zeros(self.shape[0], 1), torch.zeros(1, self.shape[1])
        return torch.cat(ups, 1), torch.cat(downs, 0)

    def combined(self, coefficients: Tensor) -> Tensor:
        """Σ cᵢΔWᵢ whole, float32; one ΔW at a time, so that memory does not grow with their number."""
        out = torch.zeros(self.shape)
        for i, coefficient in enumerate(coefficients.tolist()):
            part = self.parts[i]
            if part is None or coefficient == 0:
                continue
            if isinstance(part, LowRankDelta):
                out.addmm_(part.up.to(torch.float32), part.down.to(torch.float32), alpha=part.scale * coefficient)
            else:
                out.add_(part, alpha=coefficient)
        return out


def pair_norm(up: Tensor, down: Tensor, scale: float) -> float:
    """‖scale · up · down‖_F by (upᵀup) ∘ (down downᵀ), in float64; about 10⁻⁸ of the factors' norms are lost."""
    up, down = up.to(torch.float64), down.to(torch.float64)
    return abs(scale) * math.sqrt(max(0.0, float(((up.T @ up) * (down @ down.T)).sum())))


def _norm(part: Part) -> float:
    return (
        float(part.to(torch.float64).norm()) if isinstance(part, Tensor) else pair_norm(part.up, part.down, part.scale)
    )


def _double(part: Part | None) -> Part | None:
    """A pair in float64; what is whole as it is, for it is large."""
    if not isinstance(part, LowRankDelta):
        return part
    return LowRankDelta(part.up.to(torch.float64), part.down.to(torch.float64), part.scale, "linear")


def _inner(one: Part, other: Part) -> float:
    if isinstance(one, Tensor):
        if isinstance(other, Tensor):
            return float((one.to(torch.float64) * other.to(torch.float64)).sum())
        one, other = other, one
    up, down = one.up.to(torch.float64), one.down.to(torch.float64)
    if isinstance(other, Tensor):
        return one.scale * float(((up.T @ other.to(torch.float64)) * down).sum())
    left, right = up.T @ other.up.to(torch.float64), down @ other.down.to(torch.float64).T
    return one.scale * other.scale * float((left * right).sum())
