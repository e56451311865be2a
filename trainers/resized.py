"""A parameter that grew or shrank, and what goes along with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Resized:
    """A parameter in whose place another one stands, larger or smaller at the end of ``dim``.

    Attributes:
        old, new: the two; what both have is the same.
        dim: the dimension.
    """

    old: nn.Parameter
    new: nn.Parameter
    dim: int

    def fitted(self, tensor: Tensor, grown: Callable[[Tensor, int, int], Tensor]) -> Tensor:
        """A tensor of the old one's shape in the new one's; ``grown(tensor, count, dim)`` makes what is added."""
        before, after = self.old.shape[self.dim], self.new.shape[self.dim]
        if after <= before:
            return tensor.narrow(self.dim, 0, after).clone(memory_format=torch.contiguous_format)
        return torch.cat([tensor, grown(tensor, after - before, self.dim)], self.dim)
