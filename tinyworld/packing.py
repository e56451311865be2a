"""Weights in one byte each, for shipping: symmetric int8 with one scale an output channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_SCALE = ".scale"


def pack(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices and convolutions as int8 and `<name>.scale` (out,) fp32; all else in fp16.

    Each weight is off by at most half its channel's scale, max|w|/254.
    """
    packed: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if weight.ndim < 2:
            packed[name] = weight.to(torch.float16).contiguous()
            continue
        scale = weight.float().flatten(1).abs().amax(1).clamp_min(1e-12) / 127
        shaped = scale.view(-1, *[1] * (weight.ndim - 1))
        packed[name] = (weight.float() / shaped).round().to(torch.int8).contiguous()
        packed[name + _SCALE] = scale
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `pack`, in fp16."""
    weights = {}
    for name, values in packed.items():
        if name.endswith(_SCALE):
            continue
        if values.dtype == torch.int8:
            scale = packed[name + _SCALE].view(-1, *[1] * (values.ndim - 1))
            values = values.float() * scale
        weights[name] = values.to(torch.float16)
    return weights
