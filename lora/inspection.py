"""What is in a LoRA: every layer's rank, size and spectrum, sums over them, and what the file says of itself."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from . import kinds, mmdit_names, spectrum, suffixes
from .keys import canonicalise
from .kinds import LoraLayer, count, lora_layers
from .metadata import metadata_summary
from .model import metadata_of
from .resolve import MODEL, TEXT_ENCODERS, family_of_bases
from .roles import ROLES, block_of, role_of

FAMILY_NAMES = {
    "sd3": "Stable Diffusion 3",
    "flux": "Flux",
    "flux2": "Flux 2",
    "qwen-image": "Qwen-Image",
    "z-image": "Lumina 2 or Z-Image",
}
_CONTEXTS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
UNKNOWN, TEXT_ALONE, _UNET = "unknown", "text encoders alone", "a UNet of the Stable Diffusion family"
_ORDER = (
    *("clip_l", "clip_g", "clip_h", "t5xxl"),
    *("input_blocks", "middle_block", "output_blocks", "out"),
    *("noise_refiner", "context_refiner", "double_blocks", "joint_blocks"),
    *("transformer_blocks", "single_blocks", "single_transformer_blocks", "final_layer"),
)


@dataclass(frozen=True)
class InspectedLayer:
    """One layer.

    kind: as in kinds.py. role, block: as in roles.py; known: whether the name is a layer's of a known architecture.
    shape: of ΔW as a matrix (outputs, the rest), None where it has none. rank, alpha: as the file has them.
    values: singular values of ΔW, descending, those that are not 0. norm: ‖ΔW‖_F. effective, stable: spectrum.py.
    rank_99: the smallest rank that keeps 99% of Σs². All are None or empty where ΔW depends on the base weight.
    numbers: in its tensors, alpha left out. note: what keeps the figures from being the whole truth.
    """

    name: str
    kind: str
    role: str
    block: str
    known: bool
    shape: tuple[int, int] | None
    rank: int | None
    alpha: float | None
    values: tuple[float, ...]
    norm: float | None
    effective: float | None
    stable: float | None
    rank_99: int | None
    numbers: int
    dtype: str
    note: str = ""


@dataclass(frozen=True)
class Sums:
    """Over the layers of a block or role: how many, their numbers, ‖·‖_F of all together, and means a layer.

    Means are over the layers that have the figure; NaN where none has.
    """

    name: str
    layers: int
    numbers: int
    norm: float
    rank: float
    effective: float
    stable: float
    rank_99: float


@dataclass(frozen=True)
class Inspection:
    """Everything found. unknown_keys: those that are no part of any layer. about: see metadata_summary."""

    layers: tuple[InspectedLayer, ...]
    architecture: str
    about: dict[str, str]
    metadata: dict[str, str]
    unknown_keys: tuple[str, ...] = field(default=())

    @property
    def roles(self) -> list[Sums]:
        """In the order of roles.ROLES; those that have layers."""
        return [sums(r, found) for r in ROLES if (found := [layer for layer in self.layers if layer.role == r])]

    @property
    def blocks(self) -> list[Sums]:
        """In the order in which the model runs through them, as far as their names tell."""
        names = sorted({layer.block for layer in self.layers}, key=block_order)
        return [sums(name, [layer for layer in self.layers if layer.block == name]) for name in names]

    def as_json(self) -> dict[str, Any]:
        """Plain lists and dicts; a figure that is not there is null."""

        def plain(one: Any) -> dict[str, Any]:
            return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in vars(one).items()}

        layers = [plain(layer) | {"values": [float(f"{v:.6g}") for v in layer.values]} for layer in self.layers]
        return {
            "architecture": self.architecture,
            "about": self.about,
            "kinds": dict(Counter(layer.kind for layer in self.layers)),
            "roles": [plain(one) for one in self.roles],
            "blocks": [plain(one) for one in self.blocks],
            "layers": layers,
            "unknown_keys": list(self.unknown_keys),
            "metadata": self.metadata,
        }


def inspect_lora(lora: Mapping[str, Tensor], progress: Callable[[int, int], None] | None = None) -> Inspection:
    """Measure every layer of a LoRA in any naming scheme. progress(done, total) is called after each layer.

    Raises ValueError where there is no layer at all. What is incomplete or unknown is in the result, and said to be.
    """
    try:
        found = canonicalise(lora)
        named, strange = found.tensors, {key: lora[key] for key in found.unmatched if key in lora}
    except ValueError:  # half a layer, or one twice: then every layer by its own name
        named, strange = dict(lora), {}
    layers, others = lora_layers(named)
    unknown, rest = lora_layers(strange)
    if not layers and not unknown:
        raise ValueError(f"none of the {len(lora)} tensors is a change to a layer: this is no LoRA")
    measured = []
    for number, layer in enumerate([*layers, *unknown], 1):
        measured.append(_measure(layer, known=number <= len(layers)))
        if progress:
            progress(number, len(layers) + len(unknown))
    metadata = metadata_of(lora)
    about = metadata_summary(metadata)
    return Inspection(tuple(measured), architecture(measured), about, metadata, (*others, *rest))


def architecture(layers: Sequence[InspectedLayer]) -> str:
    """Which model the layers are of, by their names and the width of their text."""
    return architecture_of({layer.name: layer.shape for layer in layers}, [y.name for y in layers if y.known])


def architecture_of(shapes: Mapping[str, tuple[int, int] | None], known: Iterable[str] | None = None) -> str:
    """Which model these layers are of. shapes: canonical layer -> (outputs, the rest) of its ΔW, None where unknown.

    known: those whose names are a known architecture's; None: all.
    """
    names = [name.removeprefix(MODEL) for name in shapes if name.startswith(MODEL)]
    if family := mmdit_names.family_of_all(names) or family_of_bases(shapes if known is None else known):
        return FAMILY_NAMES[family]
    widths = {shape[1] for name, shape in shapes.items() if shape and name.endswith((".attn2.to_k", ".attn2.to_v"))}
    if found := next((_CONTEXTS[width] for width in sorted(widths) if width in _CONTEXTS), None):
        return found
    if any(name.startswith(("input_blocks.", "output_blocks.", "middle_block.")) for name in names):
        return f"{_UNET}{f' with text {min(widths)} wide' if widths else ''}"
    return TEXT_ALONE if all(name.startswith(TEXT_ENCODERS) for name in shapes) else UNKNOWN


def are_different(one: str, other: str) -> bool:
    """Whether two answers of ``architecture_of`` say for certain that the LoRAs are of different models."""
    if one == other or {one, other} & {TEXT_ALONE, UNKNOWN}:
        return False
    unets = [name.startswith(_UNET) or name in _CONTEXTS.values() for name in (one, other)]
    return not (all(unets) and _UNET in (one, other))  # a UNet of unknown width may be any of them


def sums(name: str, layers: Sequence[InspectedLayer]) -> Sums:
    """Of these layers."""

    def mean(values: Iterable[float | None]) -> float:
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known else math.nan

    return Sums(
        name,
        len(layers),
        sum(layer.numbers for layer in layers),
        math.sqrt(math.fsum(layer.norm**2 for layer in layers if layer.norm is not None)),
        mean(layer.rank for layer in layers),
        mean(layer.effective for layer in layers),
        mean(layer.stable for layer in layers),
        mean(layer.rank_99 for layer in layers),
    )


def block_order(name: str) -> tuple[int, str, int]:
    """Sorts block names as the model runs: text encoders, embedders, down, middle, up, and numbers as numbers."""
    stem, _, number = name.rpartition(".")
    stem, index = (stem, int(number)) if number.isdigit() else (name, -1)
    if stem in _ORDER:
        place = _ORDER.index(stem)
        return (place if place < 4 else place + 10, stem, index)
    return (12 if index >= 0 else 5, stem, index)


def _measure(layer: LoraLayer, *, known: bool) -> InspectedLayer:
    note = ""
    try:
        svd = layer.svd()
    except ValueError as error:
        svd, note = None, str(error)
    if not note and svd is None:
        note = "ΔW depends on the base weight" if layer.kind != kinds.OTHER else ", ".join(sorted(layer.parts))
    elif layer.kind == kinds.DORA:
        note = "figures of the low-rank part, before it is normalised with the base weight"
    if not known:
        note = "; ".join(filter(None, ["no known architecture has a layer of this name", note]))
    widest = max((p for s, p in layer.parts.items() if s != suffixes.ALPHA), key=lambda tensor: tensor.numel())
    about = {
        "name": layer.name,
        "kind": layer.kind,
        "role": role_of(layer.name),
        "block": block_of(layer.name),
        "known": known,
        "rank": layer.rank,
        "alpha": layer.alpha,
        "numbers": count(layer.parts),
        "dtype": str(widest.dtype).removeprefix("torch."),
        "note": note,
    }
    if svd is None:
        return InspectedLayer(**about, shape=None, values=(), norm=None, effective=None, stable=None, rank_99=None)  # type: ignore[arg-type]
    values = svd.values[svd.values > 0]
    return InspectedLayer(
        **about,  # type: ignore[arg-type]
        shape=svd.shape,
        values=tuple(values.tolist()),
        norm=spectrum.norm(values),
        effective=spectrum.effective_rank(values),
        stable=spectrum.stable_rank(values),
        rank_99=spectrum.smallest_rank(values, 0.01) if len(values) else 0,
    )


def to_json(inspection: Inspection) -> str:
    """As text, a line an entry of the outer lists, so that it can be read and compared."""
    return json.dumps(inspection.as_json(), ensure_ascii=False, allow_nan=False, indent=1)
