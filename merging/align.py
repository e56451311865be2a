"""The same layer of several LoRAs side by side, whatever kind, rank, alpha and dtype each has it in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora import kinds, on_base, suffixes
from ..lora.delta import LowRankDelta
from ..lora.inspection import architecture_of, are_different
from ..lora.keys import to_deltas
from ..lora.kinds import LoraLayer
from ..lora.on_base import BaseWeights
from ..lora.resolve import layer_name
from ..lora.sizes import changed_size
from .layer_weights import LayerWeights, weights_in
from .stack import LayerStack, Part

_VECTORS = ("diff_b", "w_norm", "b_norm", "diff")
"""Changes that are added to a bias or a norm, and so are merged as they are; `diff` where it has one dimension."""


@dataclass(frozen=True)
class Source:
    """One LoRA to merge.

    name: for messages and metadata, such as the file's. tensors: in comfy naming, as ``load_lora`` gives it; any
    mapping, so that one that reads from disk when asked (``open_lora``) keeps memory small. weight: any finite number.
    """

    name: str
    tensors: Mapping[str, Tensor]
    weight: float = 1.0


@dataclass(frozen=True)
class Slot:
    """What is merged in one go: the ΔW of one layer (suffix ""), or its bias's or norm's change (that suffix)."""

    base: str
    suffix: str

    @property
    def name(self) -> str:
        """The canonical layer, and for a bias or norm the suffix."""
        return layer_name(self.base) + (f".{self.suffix}" if self.suffix else "")


class Alignment:
    """The layers of several LoRAs, checked to belong together; ``load`` gives one at a time.

    sources: at least one. rules: weights of single layers. base: weights of the model that they are for, which DoRA and
    OFT need. slots: in the order in which the LoRAs have them.
    Raises ValueError where there is no LoRA or no layer, a weight is not finite, a layer depends on the base weight
    (DoRA and OFT without `base`; BOFT, GLoRA), its tensors do not belong together, or two LoRAs are of different
    models: then it names the architecture of each and the first layer that differs.
    """

    def __init__(
        self, sources: Sequence[Source], rules: Sequence[LayerWeights] = (), base: BaseWeights | None = None
    ) -> None:
        if not sources:
            raise ValueError("there is no LoRA to merge; give at least one")
        for source in sources:
            if not math.isfinite(source.weight):
                raise ValueError(f"the weight of {source.name} is {source.weight}; expected a finite number")
        self.sources = tuple(sources)
        self._rules = tuple(rules)
        self._base = base
        self._keys = [_keys(source) for source in sources]
        self._check()
        found: dict[Slot, None] = {}
        for keys in self._keys:
            for layer, names in keys.items():
                found |= dict.fromkeys(Slot(layer, suffix) for suffix in _slots(names, self._is_vector(layer)))
        self.slots = tuple(found)
        for slot in self.slots:  # a rule with a wrong number of weights is refused before the work, not in its middle
            weights_in(layer_name(slot.base), [source.weight for source in sources], self._rules)

    def load(self, slot: Slot, only: int | None = None) -> LayerStack:
        """That layer of every LoRA, or of that one alone.

        Raises ValueError naming LoRA and layer where it holds NaN, or its change has another size than the others'.
        """
        weights = weights_in(layer_name(slot.base), [source.weight for source in self.sources], self._rules)
        parts: list[Part | None] = []
        kernels: list[tuple[int, ...]] = []
        for index, keys in enumerate(self._keys):
            layer = self._layer(index, slot.base) if slot.base in keys and only in (None, index) else None
            try:
                parts.append(None if layer is None else _part(layer, slot.suffix, self._base))
            except ValueError as error:
                raise ValueError(f"{self.sources[index].name}: {error}") from error
            first = next((part for part in parts if part is not None), None)
            if first is not None and parts[-1] is not None and parts[-1].shape != first.shape:
                raise ValueError(
                    f"{self.sources[index].name} changes {slot.name} by {_text(parts[-1].shape)} numbers, and another "
                    f"LoRA by {_text(first.shape)}. Merge LoRAs of one base model"
                )
            if layer is not None and parts[-1] is not None and not slot.suffix:
                kernels.append(layer.kernel())
        return LayerStack(slot.name, tuple(parts), weights, max(kernels, key=len, default=()))

    def __iter__(self) -> Iterator[tuple[Slot, LayerStack]]:
        return ((slot, self.load(slot)) for slot in self.slots)

    def _layer(self, index: int, base: str) -> LoraLayer:
        return self._of(self.sources[index].tensors, index, base)

    def _outline(self, index: int, base: str) -> LoraLayer:
        """The same without what fills the memory, where the LoRA is a file that is read when asked."""
        tensors = self.sources[index].tensors
        return self._of(getattr(tensors, "outline", tensors), index, base)

    def _of(self, tensors: Mapping[str, Tensor], index: int, base: str) -> LoraLayer:
        return LoraLayer(base, layer_name(base), {s: tensors[key] for s, key in self._keys[index][base].items()})

    def _is_vector(self, base: str) -> bool:
        return any(
            self._outline(index, base).parts["diff"].ndim == 1
            for index, keys in enumerate(self._keys)
            if "diff" in keys.get(base, ())
        )

    def _check(self) -> None:
        """Every LoRA's layers by themselves, then each LoRA against the first."""
        sizes = []
        for index, source in enumerate(self.sources):
            sizes.append({base: _size(source, self._outline(index, base), self._base) for base in self._keys[index]})
            if not sizes[-1]:
                raise ValueError(f"{source.name} changes no layer; there is nothing to merge")
        if len(sizes) == 1:
            return
        names = [architecture_of({layer_name(b): s if len(s) == 2 else None for b, s in of.items()}) for of in sizes]
        seen: dict[str, int] = {}
        for index, of in enumerate(sizes):
            for base, size in of.items():
                first = seen.setdefault(base, index)
                both = min(len(size), len(sizes[first][base]))  # a bias alone tells one dimension
                if sizes[first][base][:both] != size[:both]:
                    raise ValueError(self._differ(names, first, index, base, sizes[first][base], size))
        for index, name in enumerate(names):
            first = next(i for i in range(index + 1) if i == index or are_different(names[i], name))
            if first != index:
                base = next((b for b in sizes[index] if b not in sizes[first]), next(iter(sizes[index])))
                raise ValueError(self._differ(names, first, index, base, None, sizes[index][base]))

    def _differ(
        self, names: Sequence[str], one: int, other: int, base: str, size: tuple[int, ...] | None, its: tuple[int, ...]
    ) -> str:
        has = f"has it with a weight of {_text(size)}" if size else "has no such layer"
        return (
            f"{self.sources[one].name} (architecture: {names[one]}) and {self.sources[other].name} "
            f"(architecture: {names[other]}) are LoRAs of different models. The first layer that differs is "
            f"{layer_name(base)}: the one {has}, the other with {_text(its)}. Merge LoRAs of one base model"
        )


def _text(size: Sequence[int]) -> str:
    return "×".join(str(n) for n in size)


def _keys(source: Source) -> dict[str, dict[str, str]]:
    """base -> suffix -> key, by the names alone. An alpha by itself is no layer."""
    out: dict[str, dict[str, str]] = {}
    for key in source.tensors:
        if (split := suffixes.split(key)) is None:
            raise ValueError(
                f"{source.name}: the key {key} is no part of a LoRA. Load the file with Load LoRA (Likeness), which "
                "names what it cannot place"
            )
        parts = out.setdefault(split[0], {})
        if split[1] in parts:
            raise ValueError(f"{source.name} has {split[1]} of the layer {split[0]} twice; the second time as {key}")
        parts[split[1]] = key
    return {base: parts for base, parts in out.items() if set(parts) != {suffixes.ALPHA}}


def _slots(names: Mapping[str, str], vector: bool) -> list[str]:
    """The suffixes of a layer's slots; "" is its ΔW."""
    beside = [suffix for suffix in _VECTORS if suffix in names and (suffix != "diff" or vector)]
    return ([""] if set(names) - set(beside) - {suffixes.ALPHA} else []) + beside


def _size(source: Source, layer: LoraLayer, base: BaseWeights | None) -> tuple[int, ...]:
    """(out, everything else) of the weight a layer changes; (n,) of a bias or norm. Refuses what has no ΔW."""
    name, kind = layer.name, layer.kind
    if kind in on_base.KINDS:
        return _size_on_base(source, layer, base)
    if kind in (kinds.BOFT, kinds.GLORA):
        raise ValueError(
            f"{source.name}: its layer {name} is {kind}, which turns or scales the weight of the base model, and which "
            "is not merged. Merge LoRAs of another kind, or apply this one to the model first"
        )
    if odd := sorted({"set_weight", "reshape_weight"} & set(layer.parts)):
        raise ValueError(f"{source.name}: its layer {name} replaces the weight ({odd[0]}), which cannot be merged")
    if kind == kinds.OTHER:
        return tuple(next(tensor for suffix, tensor in layer.parts.items() if suffix != suffixes.ALPHA).shape)
    size: tuple[int, int | None] | None
    if kind == kinds.LORA:
        try:
            (delta,) = to_deltas(_pair(layer)).values()
        except ValueError as error:
            raise ValueError(f"{source.name}: {error}") from error
        size = delta.shape[0], math.prod(delta.shape[1:])
    else:
        try:
            size = changed_size(layer.parts)
        except (KeyError, RuntimeError, IndexError):
            size = None
    if size is None or size[1] is None:
        shapes = ", ".join(f"{suffix} {tuple(tensor.shape)}" for suffix, tensor in layer.parts.items())
        raise ValueError(f"{source.name}: the layer {name} is incomplete or malformed: it has {shapes}")
    return size[0], size[1]


def _size_on_base(source: Source, layer: LoraLayer, base: BaseWeights | None) -> tuple[int, ...]:
    if base is None:
        raise ValueError(
            f"{source.name}: its layer {layer.name} is {layer.kind}, which turns or scales the weight of the base "
            "model, so that its change cannot be told without it. Connect the MODEL that it was trained on, or merge "
            "LoRAs of another kind"
        )
    weight = base.weight(layer.name)
    if weight is None:
        raise ValueError(f"{source.name}: {on_base.no_layer(layer)}")
    return int(weight.shape[0]), math.prod(weight.shape[1:])


def _pair(layer: LoraLayer) -> dict[str, Tensor]:
    names = (suffixes.UP, suffixes.DOWN, suffixes.MID, suffixes.ALPHA)
    return {f"{layer.base}.{name}": layer.parts[name] for name in names if name in layer.parts}


def _part(layer: LoraLayer, suffix: str, base: BaseWeights | None) -> Part | None:
    """ΔW as a matrix, or as two where that is smaller; a bias's or norm's change as it is."""
    for name, tensor in layer.parts.items():
        if not bool(torch.isfinite(tensor.to(torch.float32)).all()):  # float8 has no isfinite
            raise ValueError(f"the layer {layer.name} holds NaN or infinity ({name}): the file is damaged")
    if suffix:
        vector = layer.parts.get(suffix)
        return None if vector is None else vector.to(torch.float32)
    if layer.kind == kinds.OTHER:
        return None
    if layer.kind in on_base.KINDS:
        assert base is not None
        return on_base.change_on(base, layer)
    if layer.kind == kinds.FULL:
        return layer.parts["diff"].to(torch.float32).flatten(1)
    if layer.kind == kinds.LORA:
        (delta,) = to_deltas(_pair(layer)).values()
        return LowRankDelta(delta.up.flatten(1), delta.down.flatten(1), delta.scale, "linear")
    svd = layer.svd()
    assert svd is not None
    rank = max(1, int((svd.values > 0).sum()))
    up, down = (factor.to(torch.float32) for factor in svd.factors(rank))
    return LowRankDelta(up, down, 1.0, "linear") if rank * sum(svd.shape) < math.prod(svd.shape) else up @ down
