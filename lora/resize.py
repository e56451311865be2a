"""Smaller ranks for a finished LoRA: each layer's ΔW cut to its best approximation (Eckart & Young 1936)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import kinds, spectrum, suffixes
from .kinds import LoraLayer, as_kernel, count, lora_layers
from .metadata import RESIZED
from .model import LoraTensors, metadata_of

logger = logging.getLogger(__name__)

MODES = ("rank", "energy", "relative error")
OTHERS = ("where smaller", "always", "never")
_FROM_THE_BASE = "turns or scales the base weight: cut, it would be another change"


@dataclass(frozen=True)
class Truncation:
    """How far to cut.

    mode: "rank": every layer to at most `rank`. "energy": each to the smallest rank that keeps the share `energy`
    (0 to 1) of Σs². "relative error": each to the smallest rank with ‖ΔW − cut‖_F ≤ `tolerance` · ‖ΔW‖_F.
    max_rank: an upper limit in the last two, 0 for none; a layer that meets it may miss energy or tolerance.
    others: whether LoHa, LoKr and full differences become LoRAs: "where smaller", "always" or "never".
    Raises ValueError for what is out of range.
    """

    mode: str = "rank"
    rank: int = 16
    energy: float = 0.95
    tolerance: float = 0.1
    max_rank: int = 0
    others: str = "where smaller"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"unknown mode {self.mode!r}; expected one of {', '.join(MODES)}")
        if self.others not in OTHERS:
            raise ValueError(f"unknown choice {self.others!r} for other kinds; expected one of {', '.join(OTHERS)}")
        if self.rank < 1 or self.max_rank < 0:
            raise ValueError(f"the rank is {self.rank} and max_rank {self.max_rank}; expected ≥ 1, and ≥ 0")
        if not 0 < self.energy <= 1:
            raise ValueError(f"the energy to keep is {self.energy}; expected a share above 0, up to 1 (all)")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"the tolerance is {self.tolerance}; expected from 0 (exact) to below 1")

    def rank_for(self, values: Tensor) -> int:
        """The new rank of a layer, at least 1. values: (k,) its singular values, descending."""
        if self.mode == "rank":
            return max(1, min(self.rank, int((values > 0).sum())))
        lost = 1 - self.energy if self.mode == "energy" else self.tolerance**2
        rank = spectrum.smallest_rank(values, lost)
        return min(rank, self.max_rank) if self.max_rank else rank

    @property
    def text(self) -> str:
        """In words, for the report and the metadata."""
        limit = f", at most rank {self.max_rank}" if self.max_rank and self.mode != "rank" else ""
        return {
            "rank": f"rank {self.rank}",
            "energy": f"energy {self.energy:g}{limit}",
            "relative error": f"relative error {self.tolerance:g}{limit}",
        }[self.mode]


@dataclass(frozen=True)
class ResizedLayer:
    """What happened to one layer.

    before, after: ranks; None where the layer has none (a full difference) or still none. energy: share of Σs² kept.
    squared: (‖ΔW‖²_F, ‖ΔW − new‖²_F), NaN where unknown. numbers, bytes: (before, after), alpha left out; the bytes
    after are those at the precision the layer came in. note: why it was kept as it was, or what else to know.
    """

    name: str
    kind: str
    before: int | None
    after: int | None
    energy: float
    squared: tuple[float, float]
    numbers: tuple[int, int]
    bytes: tuple[int, int]
    note: str = ""

    @property
    def error(self) -> float:
        """‖ΔW − new‖_F / ‖ΔW‖_F."""
        return math.sqrt(self.squared[1] / self.squared[0]) if self.squared[0] > 0 else 0.0


def resize_lora(
    lora: Mapping[str, Tensor], how: Truncation, progress: Callable[[int, int], None] | None = None
) -> tuple[LoraTensors, list[ResizedLayer]]:
    """The LoRA with every layer cut, and what happened to each; layers in the order of the LoRA.

    lora: in comfy naming, as ``load_lora`` gives it. A cut layer has scale 1 (alpha = rank) and float32 factors; what
    is not cut is the same tensor as before. No layer grows (but see ``Truncation.others``). DoRA, OFT, BOFT, GLoRA,
    biases and norms are kept as they are, and said to be. progress(done, total) is called after each layer.
    Raises ValueError where the LoRA is empty, or a layer's tensors do not belong together.
    """
    layers, others = lora_layers(lora)
    if not layers:
        raise ValueError("the LORA_MODEL changes no layer: there is nothing to resize")
    out: dict[str, Tensor] = {key: lora[key] for key in others}
    found = []
    for number, layer in enumerate(layers, 1):
        parts, resized = _resize(layer, how)
        out |= {f"{layer.base}.{suffix}": tensor for suffix, tensor in parts.items()}
        found.append(resized)
        if progress:
            progress(number, len(layers))
    logger.info("resized %d layers to %s", sum(not layer.note for layer in found), how.text)
    return LoraTensors(out, _metadata(metadata_of(lora), how, found, out)), found


def _resize(layer: LoraLayer, how: Truncation) -> tuple[dict[str, Tensor], ResizedLayer]:
    if layer.kind in (kinds.DORA, kinds.OFT, kinds.BOFT, kinds.GLORA):
        return _kept(layer, f"kept: {layer.kind} {_FROM_THE_BASE}")
    if layer.kind == kinds.OTHER:
        return _kept(layer, "kept: no matrix")
    plain = layer.kind == kinds.LORA
    if not plain and how.others == "never":
        return _kept(layer, "kept, as asked")
    svd = layer.svd()
    assert svd is not None
    rank = how.rank_for(svd.values)
    difference = layer.difference()
    numbers = rank * sum(svd.shape)
    if numbers >= count(difference) and (plain or how.others != "always"):
        total = spectrum.norm(svd.values) ** 2
        note = "" if plain else f"kept: as a LoRA of rank {rank} it would be larger"
        return _kept(layer, note, total)
    up, down = (factor.to(torch.float32) for factor in svd.factors(rank))
    down = as_kernel(down, layer.kernel())
    if down.ndim == 4:
        up = up[:, :, None, None]
    device = next(iter(difference.values())).device
    parts = {suffix: tensor for suffix, tensor in layer.parts.items() if suffix not in difference}
    alpha = torch.tensor(float(rank), dtype=torch.float32)
    parts |= {suffixes.UP: up.to(device).contiguous(), suffixes.DOWN: down.to(device).contiguous()}
    parts[suffixes.ALPHA] = alpha
    lost, total = float(spectrum.tails(svd.values)[rank]), spectrum.norm(svd.values) ** 2
    width = max(tensor.element_size() for suffix, tensor in difference.items() if suffix != suffixes.ALPHA)
    note = "" if plain else f"now a LoRA; it was a {layer.kind}"
    return parts, ResizedLayer(
        name=layer.name,
        kind=layer.kind,
        before=layer.rank,
        after=rank,
        energy=1 - lost,
        squared=(total, lost * total),
        numbers=(count(layer.parts), count(parts)),
        bytes=(_bytes(layer.parts), _bytes(layer.parts) - _bytes(difference) + numbers * width),
        note=note,
    )


def _kept(layer: LoraLayer, note: str, squared: float = math.nan) -> tuple[dict[str, Tensor], ResizedLayer]:
    numbers, size = count(layer.parts), _bytes(layer.parts)
    same = ResizedLayer(
        layer.name, layer.kind, layer.rank, layer.rank, 1.0, (squared, 0.0), (numbers, numbers), (size, size), note
    )
    return dict(layer.parts), same


def _bytes(parts: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for suffix, t in parts.items() if suffix != suffixes.ALPHA)


def relative_error(layers: Sequence[ResizedLayer]) -> float:
    """√(Σ‖ΔW − new‖² / Σ‖ΔW‖²) over all layers whose ΔW is known; 0 where none is."""
    known = [layer.squared for layer in layers if math.isfinite(layer.squared[0])]
    total = math.fsum(squared for squared, _ in known)
    return math.sqrt(math.fsum(lost for _, lost in known) / total) if total > 0 else 0.0


def _metadata(
    metadata: dict[str, str], how: Truncation, layers: Sequence[ResizedLayer], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """What the file said of itself, less what is no longer true, and what was done."""
    for key in ("ss_network_dim", "ss_network_alpha", "ss_network_module", "lora_adapter_metadata"):
        metadata.pop(key, None)
    ranks = {layer.after for layer in layers if layer.after is not None}
    if len(ranks) > 1:  # sd-scripts' own word for it
        metadata["ss_network_dim"] = metadata["ss_network_alpha"] = "Dynamic"
    done = {
        "to": how.text,
        "numbers": [sum(layer.numbers[i] for layer in layers) for i in (0, 1)],
        "relative_error": float(f"{relative_error(layers):.6g}"),
    }
    try:
        earlier = json.loads(metadata.get(RESIZED, "[]"))
    except (ValueError, RecursionError):
        earlier = []
    metadata[RESIZED] = json.dumps([*(earlier if isinstance(earlier, list) else []), done])
    comment = metadata.get("ss_training_comment", "")
    metadata["ss_training_comment"] = "; ".join(filter(None, [comment, f"resized with Likeness to {how.text}"]))
    return metadata
