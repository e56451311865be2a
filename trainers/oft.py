"""Orthogonal finetuning: a layer's outputs are turned, block by block, and nothing is added to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class OFTLayer(nn.Module):
    """y = R (W x) + bias, with R block-diagonal and orthogonal (Qiu et al. 2023, arXiv 2306.07280, §3.2).

    Each block is the Cayley transform R = (I + Q)(I − Q)⁻¹ of the skew Q = P − Pᵀ, with P the learnt ``oft_blocks``
    (n, b, b), n·b the layer's outputs. It turns outputs, as files with ``oft_blocks`` mean it; peft's OFT turns the
    inputs, for which no file format that the host reads has a form. The weight is not looked at, so that it may be of
    any dtype and lie anywhere.
    """

    def __init__(self, base_layer: nn.Linear | nn.Conv2d, block: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        outputs = base_layer.weight.shape[0]
        self.oft_blocks = nn.Parameter(torch.zeros(outputs // block, block, block))

    def turn(self) -> Tensor:
        """R − I, (n, b, b), to be multiplied from the right: (…, n, b) rows of outputs."""
        skew = self.oft_blocks - self.oft_blocks.mT
        eye = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
        # (I + Q)(I − Q)⁻¹ − I = 2 Q (I − Q)⁻¹; the two factors commute
        turn: Tensor = 2 * torch.linalg.solve(eye - skew, skew)
        return turn

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What the layer makes of x, turned."""
        out: Tensor = self.base_layer(x, *args, **kwargs)
        if self._disable_adapters:
            return out
        bias = self.base_layer.bias
        channels = 1 if out.ndim == 4 else out.ndim - 1
        rows = out.movedim(channels, -1)
        if bias is not None:
            rows = rows - bias.to(rows)
        blocks = torch.unflatten(rows, -1, self.oft_blocks.shape[:2])
        turned = torch.einsum("...nb,nbc->...nc", blocks, self.turn().to(out.dtype)).flatten(-2)
        return out + turned.movedim(-1, channels)


def block_size(outputs: int, most: int) -> int:
    """The largest divisor of a layer's outputs that is not above ``most``."""
    return max(size for size in range(1, min(outputs, most) + 1) if outputs % size == 0)
