"""Changes that turn or scale the base weight, DoRA and OFT: their ΔW, once that weight is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import kinds
from .kinds import LoraLayer

KINDS = (kinds.DORA, kinds.OFT)
"""What ``change_on`` knows."""


@dataclass(frozen=True)
class BaseWeights:
    """The weights of the model that LoRAs are for.

    weight: canonical layer -> its weight (out, in, …) without any LoRA, on any device, in any dtype with a fraction;
    None where the model has no such layer. rows_by_base: whether a magnitude of each row (peft's, LyCORIS' wd_on_out)
    is divided by ‖W‖, as ComfyUI up to now applies it, in place of the paper's ‖W + ΔW‖.
    """

    weight: Callable[[str], Tensor | None]
    rows_by_base: bool = False


def change_on(base: BaseWeights, layer: LoraLayer) -> Tensor:
    """(out, everything else) W' − W of a DoRA or OFT at strength 1, float32.

    Raises ValueError naming the layer where the model has no such layer, or one of another size.
    """
    weight = base.weight(layer.name)
    if weight is None:
        raise ValueError(no_layer(layer))
    weight = weight.detach().cpu().to(torch.float64)
    try:
        if layer.kind == kinds.OFT:
            return turned(weight, layer.parts["oft_blocks"], layer.alpha or 0.0).to(torch.float32)
        plain = replace(layer, parts={s: tensor for s, tensor in layer.parts.items() if s != "dora_scale"})
        delta = plain.delta().reshape(weight.shape)
        return magnified(weight, delta, layer.parts["dora_scale"], base.rows_by_base).to(torch.float32)
    except RuntimeError as error:
        shapes = ", ".join(f"{suffix} {tuple(tensor.shape)}" for suffix, tensor in layer.parts.items())
        raise ValueError(
            f"its layer {layer.name} ({shapes}) does not fit the MODEL's weight {tuple(weight.shape)}. Connect the one "
            "it was trained on"
        ) from error


def no_layer(layer: LoraLayer) -> str:
    """Why, in words, the change cannot be told of a model without that layer."""
    return (
        f"its layer {layer.name} is {layer.kind}, and the MODEL that is connected has no such layer. Connect the one "
        "that it was trained on (and its CLIP, for layers of text encoders)"
    )


def magnified(weight: Tensor, delta: Tensor, magnitude: Tensor, rows_by_base: bool = False) -> Tensor:
    """W' − W with W' = m · (W + ΔW) / ‖W + ΔW‖ (DoRA; Liu et al. 2024, arXiv 2402.09353, eq. 5), flattened to 2-D.

    weight, delta: (out, in, …), float64. magnitude: (out, 1, …) or (out,), one of each row, as peft has it; or
    (1, in, …), one of each column, the paper's. Which it is the first dimension says, to the host as well. The norm
    has float32's ε added, as there. rows_by_base: see ``BaseWeights``.
    """
    ones = (1,) * (weight.ndim - 1)
    magnitude = magnitude.detach().cpu().to(torch.float64)
    adapted = weight + delta
    if magnitude.shape[0] == weight.shape[0]:
        norm = (weight if rows_by_base else adapted).flatten(1).norm(dim=1).reshape(-1, *ones)
        magnitude = magnitude.reshape(-1, *ones)
    else:
        norm = adapted.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *ones[1:])
        magnitude = magnitude.reshape(1, -1, *ones[1:])
    if magnitude.shape != norm.shape:
        raise RuntimeError(f"{magnitude.numel()} magnitudes for {norm.numel()} norms")
    gain = magnitude / (norm + torch.finfo(torch.float32).eps)
    change: Tensor = gain * delta + (gain - 1) * weight
    return change.flatten(1)


def turned(weight: Tensor, blocks: Tensor, bound: float = 0.0) -> Tensor:
    """RW − W with R of rotated blocks of rows (OFT; Qiu et al. 2023, arXiv 2306.07280, §3), flattened to 2-D.

    weight: (out, in, …), float64. blocks: (n, b, b), n · b = out; Q = blocks − blocksᵀ, no longer than `bound` where
    that is above 0, and R = (I + Q)(I − Q)⁻¹ (Cayley), with whose transpose the host multiplies, and so do we.
    """
    q = blocks.detach().cpu().to(torch.float64)
    q = q - q.transpose(1, 2)
    length = float(q.norm()) + 1e-8
    if 0 < bound < length:
        q = q * (bound / length)
    one = torch.eye(q.shape[1], dtype=torch.float64)
    turn = (one + q) @ torch.linalg.inv(one - q) - one
    rows = weight.flatten(1).reshape(*q.shape[:2], -1)
    return torch.einsum("knm,kni->kmi", turn, rows).flatten(0, 1)
