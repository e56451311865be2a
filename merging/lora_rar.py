"""LoRA.rar: coefficients of columns predicted by a small network (Shenaj et al. 2025, arXiv 2412.05148).

A hypernetwork looks at one column of a layer's two ΔW at a time and says how much of each to keep:

    (m₁[c], m₂[c]) = V relu(H [ΔW₁[:, c]; ΔW₂[:, c]] + b) + v,

H (128, 2 · out) one for each width `out` of layers, V (2, 128) one for all. It is asked of the query and output
projections of attention; keys and values stay at 1. Of two low-rank differences H ΔW = (H B) A, so ΔW is never made.

Its answer depends on the scale of what it looks at. The published network was trained on LoRAs of one recipe; our own
are given ΔW divided by the root mean square of all entries of both, so that alpha, strength and training length of the
pair do not count, and which of the two is the stronger does.
"""

from __future__ import annotations

import json
import math
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.columns import Columns
from ..lora.delta import LowRankDelta
from ..lora.files import read_safetensors, write_safetensors
from ..lora.randomness import generator
from ..lora.roles import ATTENTION
from .stack import pair_norm

HIDDEN = 128
_FORMAT = "likeness.hypernetwork"
_ASKED = re.compile(r"\.(?:to_q|to_out\.0|to_out|q_proj|out_proj|q|o|proj)$")
"""Query and output projections, as UNets, SD3's `proj` and others call them."""


class HyperNetwork(nn.Module):
    """The network.

    Attributes:
        widths: outputs of layers that there is a head for.
        normalised: whether it is given ΔW by their common root mean square; the published one is not.
        about: what is known of its training, plain values.
    """

    def __init__(self, widths: Iterable[int], normalised: bool = True, about: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.widths = tuple(sorted(set(widths)))
        self.normalised = normalised
        self.about = dict(about or {})
        self.heads = nn.ModuleDict({str(width): nn.Linear(2 * width, HIDDEN) for width in self.widths})
        self.out = nn.Linear(HIDDEN, 2)

    @torch.no_grad()
    def begin(self, seed: int) -> HyperNetwork:
        """Fresh numbers by the seed; what comes out at first is 1 for every column, the plain sum."""
        for width in self.widths:
            head = self.heads[str(width)]
            bound = (2 * width) ** -0.5
            for parameter in head.parameters():
                parameter.uniform_(-bound, bound, generator=generator(seed, "hypernetwork", width, parameter.ndim))
        self.out.weight.zero_()
        self.out.bias.fill_(1.0)
        return self

    def coefficients(self, one: LowRankDelta, other: LowRankDelta) -> Tensor | None:
        """(2, in) m of a layer's two ΔW, differentiable in the network; None where there is no head of their width."""
        width = one.shape[0]
        if str(width) not in self.heads:
            return None
        head: Any = self.heads[str(width)]
        hidden = head.bias[:, None]
        scale = 1.0
        if self.normalised:
            squares = [pair_norm(each.up.flatten(1), each.down.flatten(1), each.scale) ** 2 for each in (one, other)]
            mean = sum(squares) / (2 * math.prod(one.shape))
            scale = mean**-0.5 if mean > 0 else 1.0
        for weight, delta in zip(head.weight.split(width, 1), (one, other), strict=True):
            up, down = (factor.detach().to(weight).flatten(1) for factor in (delta.up, delta.down))
            hidden = hidden + (weight @ up) @ (down * (delta.scale * scale))
        predicted: Tensor = self.out.weight @ F.relu(hidden) + self.out.bias[:, None]
        return predicted


@dataclass(frozen=True)
class Predicted:
    """Coefficients of two LoRAs, and what was left at 1.

    Attributes:
        columns: canonical layer -> m.
        left: why -> canonical layers.
    """

    columns: Mapping[str, Columns]
    left: Mapping[str, Sequence[str]] = field(default_factory=dict)


def is_asked(layer: str) -> bool:
    """Whether the network is asked of a canonical layer: query and output projections of attention."""
    return bool(ATTENTION.search(layer) and _ASKED.search(layer))


@torch.no_grad()
def predict_columns(
    network: HyperNetwork, one: Mapping[str, LowRankDelta], other: Mapping[str, LowRankDelta]
) -> Predicted:
    """The coefficients of each layer that both LoRAs change and the network knows.

    Raises:
        ValueError: it knows no layer of the two (says the widths of both), or a coefficient is no finite number.
    """
    columns: dict[str, Columns] = {}
    left: dict[str, list[str]] = {}
    for name in dict.fromkeys((*one, *other)):
        reason = None
        if not is_asked(name):
            reason = "keys, values and what is no attention"
        elif name not in one or name not in other:
            reason = "changed by one LoRA alone"
        elif one[name].shape != other[name].shape:
            raise ValueError(f"the LoRAs change {name} by {one[name].shape} and {other[name].shape} numbers")
        elif len(one[name].shape) > 2:
            reason = "convolutions"
        elif (m := network.coefficients(one[name], other[name])) is None:
            reason = f"of width {one[name].shape[0]}, for which the hypernetwork has no head"
        elif not bool(m.isfinite().all()):
            raise ValueError(f"the hypernetwork's coefficients of {name} are no finite numbers; it is damaged")
        else:
            columns[name] = Columns((0, 1), m.float())
        if reason:
            left.setdefault(reason, []).append(name)
    if not columns:
        widths = sorted({delta.shape[0] for name, delta in one.items() if is_asked(name) and name in other})
        raise ValueError(
            f"the hypernetwork knows layers of the widths {_text(network.widths)}, and the query and output "
            f"projections that both LoRAs change have {_text(widths)}. Use one that was trained for this model"
        )
    return Predicted(columns, left)


def _text(widths: Sequence[int]) -> str:
    return ", ".join(map(str, widths)) or "none"


def save_network(path: Path, network: HyperNetwork) -> None:
    """Write it as safetensors, whole or not at all."""
    text = json.dumps({"format": 1, "normalised": network.normalised, "about": network.about}, ensure_ascii=False)
    write_safetensors(path, network.state_dict(), {_FORMAT: text})


def load_network(path: Path) -> HyperNetwork:
    """Read our own safetensors, or a copy of the published `hypernet.pth`, whose tensors are told by their shapes.

    A `.pth` is read with weights_only: nothing in it can run.

    Raises:
        ValueError: it is neither, or damaged; says what was found.
    """
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        try:
            told = json.loads(metadata[_FORMAT])
            normalised, about = bool(told["normalised"]), dict(told["about"])
        except (KeyError, ValueError, TypeError, RecursionError) as why:
            raise ValueError(
                f"{path.name} is no hypernetwork of Train LoRA.rar (Likeness): {_FORMAT} is missing"
            ) from why
    else:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError) as why:
            raise ValueError(
                f"{path.name} cannot be read as weights alone, and is not read otherwise: {str(why)[:200]}"
            ) from why
        tensors, normalised, about = _tensors(found), False, {"file": path.name}
    return from_tensors(tensors, path.name, normalised, about)


def from_tensors(tensors: Mapping[str, Tensor], name: str, normalised: bool, about: Mapping[str, Any]) -> HyperNetwork:
    """A network of tensors under any names, by their shapes: heads (128, 2 · width), the last layer (2, 128).

    Raises:
        ValueError: a weight is missing, there twice, or without a bias.
    """
    heads: dict[int, tuple[Tensor, Tensor]] = {}
    last: list[tuple[Tensor, Tensor]] = []
    for key, weight in tensors.items():
        if weight.ndim != 2:
            continue
        bias = tensors.get(f"{key.removesuffix('weight')}bias")
        out, inputs = weight.shape
        if bias is None or tuple(bias.shape) != (out,):
            raise ValueError(
                f"{name} is no hypernetwork of LoRA.rar: {key} {tuple(weight.shape)} has no bias of its own"
            )
        if (out, inputs) == (2, HIDDEN):
            last.append((weight, bias))
        elif out == HIDDEN and inputs % 2 == 0 and inputs // 2 not in heads:
            heads[inputs // 2] = (weight, bias)
        else:
            raise ValueError(f"{name} is no hypernetwork of LoRA.rar: {key} is {out}×{inputs}")
    if len(last) != 1 or not heads:
        raise ValueError(
            f"{name} is no hypernetwork of LoRA.rar: expected heads of 128×(2·width) and one layer of 2×128, found "
            f"{len(heads)} and {len(last)}"
        )
    network = HyperNetwork(heads, normalised, about)
    with torch.no_grad():
        layers = [(network.heads[str(width)], each) for width, each in heads.items()] + [(network.out, last[0])]
        for layer, (weight, bias) in layers:
            if not bool(weight.isfinite().all() and bias.isfinite().all()):
                raise ValueError(f"{name} holds NaN or infinity: it is damaged")
            layer.weight.copy_(weight)  # type: ignore[operator]
            layer.bias.copy_(bias)  # type: ignore[operator]
    return network


def _tensors(found: Any) -> dict[str, Tensor]:
    """The tensors of a checkpoint, also where they lie one level deeper, beside an optimizer's, say."""
    if isinstance(found, Mapping):
        flat = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
        if flat:
            return flat
        for value in found.values():
            if isinstance(value, Mapping) and any(isinstance(one, Tensor) and one.ndim == 2 for one in value.values()):
                return _tensors(value)
    return {}
