"""ΔW · diag(m): a LoRA whose input columns each have a coefficient, which is a LoRA of the same rank again.

B A diag(m) = B (A diag(m)), so that ΔW itself is never made. Of a convolution a column is an input channel, with all of
its kernel: scaling what a layer reads there is the same as scaling the kernel, and one number does for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from . import kinds, suffixes
from .delta import LowRankDelta
from .keys import from_deltas, to_deltas
from .kinds import LoraLayer, as_kernel, lora_layers
from .metadata import model_hash
from .model import LoraTensors, metadata_of


@dataclass(frozen=True)
class Columns:
    """The coefficients of one layer.

    loras: the numbers of the LoRAs that change the layer, ascending. values: (len(loras), in) float32, a row for each.
    """

    loras: tuple[int, ...]
    values: Tensor

    def of(self, lora: int) -> Tensor | None:
        """(in,) those of one LoRA; None where it leaves the layer alone."""
        return self.values[self.loras.index(lora)] if lora in self.loras else None


def low_rank_layers(lora: Mapping[str, Tensor]) -> dict[str, LowRankDelta]:
    """Canonical layer -> ΔW as a low-rank pair, of each layer whose weight a LoRA changes; others of it are left out.

    What is no pair (LoHa, LoKr, a full difference) becomes one of its own rank, exact to float32.
    Raises ValueError naming the layer where its change depends on the base weight (DoRA, OFT, BOFT, GLoRA), or its
    tensors do not belong together.
    """
    found = {}
    for layer in lora_layers(lora)[0]:
        if (delta := low_rank(layer)) is not None:
            found[layer.name] = delta
    return found


def low_rank(layer: LoraLayer) -> LowRankDelta | None:
    """One layer's ΔW as a pair; None where it changes a bias or norm alone. See :func:`low_rank_layers`."""
    if layer.kind in (kinds.DORA, kinds.OFT, kinds.BOFT, kinds.GLORA):
        raise ValueError(
            f"the layer {layer.name} is {layer.kind}, which turns or scales the base weight, so that its change cannot "
            "be told without the base model. Make an ordinary LoRA of it first, with Merge LoRAs (Likeness), the MODEL "
            "connected and an output rank"
        )
    if layer.kind == kinds.OTHER or (layer.kind == kinds.FULL and layer.parts["diff"].ndim < 2):
        return None
    if layer.kind == kinds.LORA:
        pair = (suffixes.UP, suffixes.DOWN, suffixes.MID, suffixes.ALPHA)
        (delta,) = to_deltas({f"{layer.base}.{s}": layer.parts[s] for s in pair if s in layer.parts}).values()
        return delta
    svd = layer.svd()
    assert svd is not None
    up, down = (factor.to(torch.float32) for factor in svd.factors(max(1, int((svd.values > 0).sum()))))
    down = as_kernel(down, layer.kernel())
    return (
        LowRankDelta(up[:, :, None, None], down, 1.0, "conv")
        if down.ndim == 4
        else LowRankDelta(up, down, 1.0, "linear")
    )


def scaled(delta: LowRankDelta, m: Tensor) -> LowRankDelta:
    """ΔW · diag(m), float32. m: (in,), of a convolution one for each input channel. Raises ValueError for others."""
    if m.shape != delta.down.shape[1:2]:
        raise ValueError(f"there are {tuple(m.shape)} coefficients for a layer of {delta.down.shape[1]} inputs")
    down = delta.down.to(torch.float32) * m.to(torch.float32).reshape(1, -1, *(1 for _ in delta.down.shape[2:]))
    return replace(delta, up=delta.up.to(torch.float32), down=down)


def with_columns(lora: Mapping[str, Tensor], columns: Mapping[str, Tensor]) -> LoraTensors:
    """A LoRA with coefficients: canonical layer -> (in,) m. Layers without any stay as they are.

    Its metadata are those of the LoRA, with the LoRA's own hash, so that what is made of it can tell its origin.
    Raises ValueError where a layer that has coefficients is not there, has another size, or has no ΔW of its own.
    """
    out: dict[str, Tensor] = {}
    seen = set()
    for layer in lora_layers(lora)[0]:
        if layer.name not in columns:
            out |= {f"{layer.base}.{suffix}": tensor for suffix, tensor in layer.parts.items()}
            continue
        seen.add(layer.name)
        delta = low_rank(layer)
        if delta is None:
            raise ValueError(f"the layer {layer.name} has no ΔW whose columns could have coefficients")
        out |= from_deltas({layer.name: scaled(delta, columns[layer.name])})
        out |= {f"{layer.base}.{s}": layer.parts[s] for s in ("diff_b", "w_norm", "b_norm") if s in layer.parts}
    if missing := sorted(set(columns) - seen):
        raise ValueError(f"the LoRA has no layer {missing[0]}, for which there are coefficients")
    metadata = metadata_of(lora)
    return LoraTensors(out, {**metadata, "sshs_model_hash": metadata.get("sshs_model_hash") or model_hash(lora)})


def columns_of(columns: Mapping[str, Columns], lora: int) -> dict[str, Tensor]:
    """Canonical layer -> (in,), those of one LoRA."""
    return {name: m for name, each in columns.items() if (m := each.of(lora)) is not None}


def all_ones(layers: Sequence[Mapping[str, LowRankDelta]]) -> dict[str, Columns]:
    """The coefficients of a plain sum of LoRAs, by what ``low_rank_layers`` found in each."""
    found: dict[str, Columns] = {}
    for name in dict.fromkeys(name for each in layers for name in each):
        there = tuple(number for number, each in enumerate(layers) if name in each)
        found[name] = Columns(there, torch.ones(len(there), layers[there[0]][name].down.shape[1]))
    return found
