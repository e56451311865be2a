"""The low-rank difference that a LoRA adds to one layer's weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRankDelta:
    """ΔW = scale · up · down (Hu et al. 2021, "LoRA", eq. 3, with B = up and A = down).

    up: (out, r), or (out, r, 1, 1) for a convolution. down: (r, in), or (r, in, kh, kw).
    scale: alpha / r, without unit. Raises ValueError where the two factors do not belong together.
    """

    up: Tensor
    down: Tensor
    scale: float
    kind: Literal["linear", "conv"]

    def __post_init__(self) -> None:
        dimensions = 2 if self.kind == "linear" else 4
        if self.up.ndim != dimensions or self.down.ndim != dimensions:
            raise ValueError(
                f"a {self.kind} LoRA has factors of {dimensions} dimensions; up is {tuple(self.up.shape)} and down is "
                f"{tuple(self.down.shape)}"
            )
        if self.up.shape[1] != self.down.shape[0]:
            raise ValueError(
                f"up {tuple(self.up.shape)} has rank {self.up.shape[1]} and down {tuple(self.down.shape)} has rank "
                f"{self.down.shape[0]}; they must be equal"
            )
        if self.kind == "conv" and tuple(self.up.shape[2:]) != (1, 1):
            raise ValueError(f"the up factor of a convolution must be 1×1, this one is {tuple(self.up.shape)}")

    @property
    def rank(self) -> int:
        """The number of columns of up."""
        return int(self.up.shape[1])

    @property
    def alpha(self) -> float:
        """scale · rank, the number that files store."""
        return self.scale * self.rank

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the layer's weight: (out, in), or (out, in, kh, kw)."""
        return (int(self.up.shape[0]), *(int(n) for n in self.down.shape[1:]))

    def dense(self) -> Tensor:
        """ΔW itself in float32, shaped as the layer's weight."""
        product = self.up.to(torch.float32).flatten(1) @ self.down.to(torch.float32).flatten(1)
        return (product * self.scale).reshape(self.shape)
