"""Every naming scheme of LoRA files into one (``canonicalise``) and out of it (``rename``).

In memory a LoRA has comfy naming: `<canonical layer>.lora_up.weight`, `.lora_down.weight`, `.alpha` and whatever else
came with the layer. The three schemes that are written:

- kohya: what sd-scripts writes: `lora_unet_` and diffusers' name with underscores for SD1 and SD2, the checkpoint's own
  name with underscores for everything else; `lora_te_` (SD1, SD2), `lora_te1_`, `lora_te2_`, `lora_te3_`.
- diffusers: for SD1, SD2 and SDXL the form that both diffusers and ComfyUI read, which is NOT diffusers' newest:
  `unet.….attn1.processor.to_q_lora.up.weight` for attention, `unet.….ff.net.0.proj.lora.up.weight` for the rest (plain
  `unet.….attn1.to_q` is not mapped by the host); for SD3 and Flux `transformer.….lora_A.weight`. It has no alpha, so
  the scale is folded into up.
- comfy: as in memory.

A LoKr, LoHa or DoRA of SOME ROWS of a layer (SimpleTuner's and OneTrainer's files for Flux, SD3) cannot be joined into
one of the whole: it keeps the name that the host has for those rows.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import cloneofsimo, fuse, suffixes
from .delta import LowRankDelta
from .naming import diffusers_names, kohya_base, structure_of
from .resolve import Resolver, Target, host_name, layer_name, tensor_name
from .sizes import changed_size

logger = logging.getLogger(__name__)

SCHEMES = ("kohya", "diffusers", "comfy")
_JOINED = {suffixes.UP, suffixes.DOWN, suffixes.MID, suffixes.ALPHA}
"""What low-rank differences of a layer's rows are joined from; LoKr, LoHa or DoRA of some rows stay by themselves."""
Layers = Mapping[str, tuple[int, ...]]
_LARGEST = 1 << 27  # numbers in a factor with its core multiplied in, a hundred times what real files have


@dataclass(frozen=True)
class Canonical:
    """A file's tensors in comfy naming; the keys that name no layer, as they were; the scheme that most keys had."""

    tensors: dict[str, Tensor]
    unmatched: tuple[str, ...]
    scheme: str


def from_deltas(deltas: Mapping[str, LowRankDelta]) -> dict[str, Tensor]:
    """Canonical layer -> ΔW as tensors in comfy naming. alpha is float32, so that half precision does not round it."""
    out: dict[str, Tensor] = {}
    for layer, delta in deltas.items():
        base = tensor_name(layer)
        out[f"{base}.{suffixes.UP}"] = delta.up
        out[f"{base}.{suffixes.DOWN}"] = delta.down
        out[f"{base}.{suffixes.ALPHA}"] = torch.tensor(delta.alpha, dtype=torch.float32)
    return out


def to_deltas(tensors: Mapping[str, Tensor]) -> dict[str, LowRankDelta]:
    """Comfy naming -> canonical layer -> ΔW. A missing alpha means scale 1; a Tucker core is multiplied into down.

    Raises ValueError naming the layer where it holds something else than a low-rank difference (LoHa, LoKr, DoRA, a
    full difference), lacks a factor, or its factors do not fit together.
    """
    out: dict[str, LowRankDelta] = {}
    for base, parts in group(tensors)[0].items():
        layer = layer_name(base)
        strange = sorted(set(parts) - {suffixes.UP, suffixes.DOWN, suffixes.MID, suffixes.ALPHA})
        if strange:
            raise ValueError(
                f"the layer {layer} holds {', '.join(strange)}, which is no plain low-rank difference; expected "
                "lora_up, lora_down and alpha. Apply this file with the host's LoRA loader instead"
            )
        if set(parts) == {suffixes.ALPHA}:
            continue
        up, down, scale = _factors(layer, parts)
        out[layer] = _delta(layer, up, down, scale)
    return out


def canonicalise(
    tensors: Mapping[str, Tensor],
    layers: Layers | None = None,
    *,
    res_blocks: Sequence[int] | None = None,
    alphas: Mapping[str, float] | None = None,
) -> Canonical:
    """Tensors in any naming scheme into comfy naming.

    layers: canonical layer -> shape of its weight, of the MODEL, where known: then names are looked up among them
    (text encoder layers too where any are given) and the factors take the weight's number of dimensions.
    res_blocks: of the UNet, where known (metadata `likeness.res_blocks`). alphas: base -> alpha where the file says it
    elsewhere than in a tensor (see ``metadata.peft_alphas``).
    Raises ValueError naming the layer where a factor is missing or a layer is there twice.
    """
    if cloneofsimo.is_cloneofsimo(tensors):
        tensors = cloneofsimo.to_diffusers(tensors)
    placed = place(tensors, layers, res_blocks)
    out: dict[str, Tensor] = {}
    for layer in placed.layers:
        out |= placed.assemble(layer, tensors, layers, alphas)
    return Canonical(out, placed.unmatched, placed.scheme)


@dataclass(frozen=True)
class Placed:
    """Where the tensors of a file go, which names and shapes alone tell.

    layers: canonical layer, or the host's name of some rows -> the bases of the file that make it, and what of it each
    is; for rows that stay by themselves, None. keys: base -> its keys. unmatched: keys that name no layer.
    """

    layers: dict[str, list[tuple[Target | None, str]]]
    keys: dict[str, list[str]]
    unmatched: tuple[str, ...]
    scheme: str

    def assemble(
        self,
        layer: str,
        tensors: Mapping[str, Tensor],
        layers: Layers | None = None,
        alphas: Mapping[str, float] | None = None,
    ) -> dict[str, Tensor]:
        """The tensors of one layer in comfy naming; only its keys are asked for. layers, alphas: see canonicalise."""
        bases = [base for _, base in self.layers[layer]]
        groups = group({key: tensors[key] for base in bases for key in self.keys[base]})[0]
        targets = [(target, base) for target, base in self.layers[layer] if target is not None]
        if not targets:
            return {f"{layer}.{suffix}": tensor for base in bases for suffix, tensor in groups[base].items()}
        parts = _merge(layer, targets, groups, alphas or {})
        if layers and len(shape := layers.get(layer, ())) in (2, 4):
            parts = {suffix: _as_dimensions(suffix, tensor, len(shape)) for suffix, tensor in parts.items()}
        return {f"{tensor_name(layer)}.{suffix}": tensor for suffix, tensor in parts.items()}


def place(
    tensors: Mapping[str, Tensor], layers: Layers | None = None, res_blocks: Sequence[int] | None = None
) -> Placed:
    """Find the layer of every key. Of the tensors only the shapes count, so that they may be on the meta device.

    layers, res_blocks, and what is raised: see ``canonicalise``.
    """
    groups, unmatched = group(tensors)
    keys = _keys(tensors)
    widths = {b: int(parts[suffixes.DOWN].shape[1]) for b, parts in groups.items() if _is_matrix(parts)}
    resolver = Resolver(groups, layers, res_blocks, widths)
    found: dict[str, list[tuple[Target | None, str]]] = {}
    alone: dict[str, list[tuple[Target | None, str]]] = {}
    schemes: Counter[str] = Counter()
    for base, parts in groups.items():
        target = resolver.find(base)
        if target is not None and target.piece is not None and not set(parts) <= _JOINED:
            if suffixes.UP in parts or suffixes.DOWN in parts:
                _factors(target.layer, parts)  # refuses half a LoRA
            alone.setdefault(host_name(target), []).append((None, base))
        elif target is None or (target.piece is not None and suffixes.UP not in parts):
            unmatched += keys[base]
            continue
        else:
            found.setdefault(target.layer, []).append((target, base))
        schemes[target.scheme] += 1
    scheme = schemes.most_common(1)[0][0] if schemes else "unknown"
    return Placed(found | alone, keys, tuple(unmatched), scheme)


def rename(tensors: Mapping[str, Tensor], scheme: str, res_blocks: Sequence[int] | None = None) -> dict[str, Tensor]:
    """Comfy naming -> one of SCHEMES; see the module's own text for what each is.

    res_blocks: the UNet's structure, which diffusers' names need; None takes what the names themselves allow.
    Raises ValueError for an unknown scheme, and naming the layer where the scheme has no name for it.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown naming scheme {scheme!r}; expected one of {', '.join(SCHEMES)}")
    groups, others = group(tensors)
    if others:
        raise ValueError(f"the key {others[0]} is no part of a LoRA: {len(others)} keys of {len(tensors)} are not")
    named = {layer_name(base): parts for base, parts in groups.items()}
    if scheme == "comfy":
        return {f"{tensor_name(n)}.{suffix}": tensor for n, parts in named.items() for suffix, tensor in parts.items()}
    structure = structure_of(named, res_blocks)
    out: dict[str, Tensor] = {}
    for layer, parts in named.items():
        if scheme == "kohya":
            base = kohya_base(layer, structure, named)
            out |= {f"{base}.{suffix}": tensor for suffix, tensor in parts.items()}
        elif set(parts) != {suffixes.ALPHA}:
            out |= _to_diffusers(layer, parts, structure)
    return out


def check_fit(tensors: Mapping[str, Tensor], layers: Layers) -> None:
    """Raise ValueError naming the first layer whose change has another size than the MODEL's weight."""
    wrong = []
    groups = group(tensors)[0]
    for base, parts in groups.items():
        layer = layer_name(base)
        shape = layers.get(layer)
        if shape is None or "reshape_weight" in parts:
            continue
        if suffixes.UP not in parts:
            size = changed_size(parts)
            if size is not None and (size[0] != shape[0] or size[1] not in (None, math.prod(shape[1:]))):
                wrong.append((layer, tuple(n for n in size if n is not None), shape))
            continue
        up, down, _ = _factors(layer, parts)
        if up.shape[0] != shape[0] or down[0].numel() != math.prod(shape[1:]):
            wrong.append((layer, (int(up.shape[0]), *(int(n) for n in down.shape[1:])), shape))
    if wrong:
        layer, ours, theirs = wrong[0]
        raise ValueError(
            f"the LoRA does not fit this MODEL: {len(wrong)} of {len(groups)} layers have another size. The first is "
            f"{layer}: the file changes a weight of {_size(ours)}, the MODEL's is {_size(theirs)}. It was made for "
            "another base model; load it with the one it was trained on"
        )


def _size(shape: Sequence[int]) -> str:
    return "×".join(str(n) for n in shape)


def group(tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """base -> suffix -> tensor, and the keys that are no part of a LoRA."""
    groups: dict[str, dict[str, Tensor]] = {}
    others: list[str] = []
    for key, tensor in tensors.items():
        if split := suffixes.split(key):
            parts = groups.setdefault(split[0], {})
            if split[1] in parts:
                raise ValueError(f"the file names {split[1]} of the layer {split[0]} twice; the second time as {key}")
            parts[split[1]] = suffixes.as_rows(tensor) if suffixes.is_peft_magnitude(key) else tensor
        else:
            others.append(key)
    return groups, others


def _keys(tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """base -> the keys that belong to it, as they are in the file."""
    keys: dict[str, list[str]] = {}
    for key in tensors:
        if split := suffixes.split(key):
            keys.setdefault(split[0], []).append(key)
    return keys


def _is_matrix(parts: Mapping[str, Tensor]) -> bool:
    return suffixes.DOWN in parts and parts[suffixes.DOWN].ndim >= 2


def _factors(layer: str, parts: Mapping[str, Tensor]) -> fuse.Factors:
    """up, down (with a Tucker core multiplied in) and scale of one layer."""
    for present, absent in ((suffixes.UP, suffixes.DOWN), (suffixes.DOWN, suffixes.UP)):
        if present in parts and absent not in parts:
            raise ValueError(f"the layer {layer} has {present} but no {absent}: the file is incomplete")
    up, down = parts[suffixes.UP], parts[suffixes.DOWN]
    if up.ndim < 2 or down.ndim < 2 or not up.numel() or not down.numel():
        raise ValueError(f"the layer {layer} has factors {tuple(up.shape)} and {tuple(down.shape)}, no matrices")
    if (mid := parts.get(suffixes.MID)) is not None:
        if mid.ndim != 4 or mid.shape[1] != down.shape[0]:
            raise ValueError(
                f"the layer {layer} has a core {tuple(mid.shape)} and down {tuple(down.shape)}, which do not fit "
                "together"
            )
        if mid.shape[0] * mid.shape[2] * mid.shape[3] * down[0].numel() > _LARGEST:
            raise ValueError(
                f"the layer {layer} has a core {tuple(mid.shape)} and down {tuple(down.shape)}: no model has a layer "
                "that large"
            )
        # ΔW[o,i,y,x] = Σ up[o,a] mid[a,b,y,x] down[b,i]; the host does the same (tucker_weight_from_conv)
        down = torch.einsum("abyx,bi->aiyx", mid.to(torch.float32), down.flatten(1).to(torch.float32)).to(down.dtype)
    rank = int(down.shape[0])
    if up.shape[1] != rank:
        raise ValueError(f"the layer {layer} has up of rank {up.shape[1]} and down of rank {rank}; they must be equal")
    return up, down, _alpha(layer, parts, rank) / rank


def _alpha(layer: str, parts: Mapping[str, Tensor], rank: int) -> float:
    alpha = parts.get(suffixes.ALPHA)
    if alpha is None:
        return float(rank)
    if alpha.numel() != 1:
        raise ValueError(f"the layer {layer} has an alpha of shape {tuple(alpha.shape)}; expected one number")
    return float(alpha)


def _delta(layer: str, up: Tensor, down: Tensor, scale: float) -> LowRankDelta:
    if max(up.ndim, down.ndim) > 2:
        up = up if up.ndim == 4 else up[..., None, None]
        down = down if down.ndim == 4 else down[..., None, None]
    try:
        return LowRankDelta(up, down, scale, "conv" if up.ndim == 4 else "linear")
    except ValueError as error:
        raise ValueError(f"the layer {layer}: {error}") from error


def _as_dimensions(suffix: str, tensor: Tensor, dimensions: int) -> Tensor:
    """A factor with as many dimensions as the weight: 1×1 convolutions and matrices are written as either."""
    if suffix in (suffixes.UP, suffixes.DOWN):
        if dimensions == 2 and tensor.ndim == 4 and tuple(tensor.shape[2:]) == (1, 1):
            return tensor[:, :, 0, 0]
        if dimensions == 4 and tensor.ndim == 2:
            return tensor[:, :, None, None]
    return tensor


def _merge(
    layer: str,
    targets: Sequence[tuple[Target, str]],
    groups: Mapping[str, Mapping[str, Tensor]],
    alphas: Mapping[str, float],
) -> dict[str, Tensor]:
    """The tensors of one canonical layer, out of all bases that name it or rows of it."""
    bases = [base for _, base in targets]
    all_parts = []
    for base in bases:
        parts = dict(groups[base])
        if suffixes.UP in parts or suffixes.DOWN in parts:
            _factors(layer, parts)  # refuses half a LoRA
            if suffixes.ALPHA not in parts and base in alphas:
                parts[suffixes.ALPHA] = torch.tensor(alphas[base], dtype=torch.float32)
        all_parts.append(parts)
    if all(target.piece is None for target, _ in targets):
        merged: dict[str, Tensor] = {}
        for parts in all_parts:
            if doubled := sorted(set(merged) & set(parts)):
                raise ValueError(f"the file names the layer {layer} twice ({', '.join(bases)}), both with {doubled[0]}")
            merged |= parts
        return merged
    pieces = []
    for (target, base), parts in zip(targets, all_parts, strict=True):
        strange = sorted(set(parts) - {suffixes.UP, suffixes.DOWN, suffixes.ALPHA})
        if strange or target.piece is None:
            raise ValueError(
                f"the file names the layer {layer} as {', '.join(bases)}; {base} cannot be joined with the rest "
                f"({', '.join(strange) or 'it is the whole layer'})"
            )
        pieces.append((target.piece, _factors(layer, parts)))
    up, down, scale = fuse.fuse(layer, pieces)
    alpha = torch.tensor(scale * down.shape[0], dtype=torch.float32)
    return {suffixes.UP: up, suffixes.DOWN: down, suffixes.ALPHA: alpha}


def _to_diffusers(layer: str, parts: Mapping[str, Tensor], structure: tuple[int, ...] | None) -> dict[str, Tensor]:
    if strange := sorted(set(parts) - {suffixes.UP, suffixes.DOWN, suffixes.MID, suffixes.ALPHA}):
        raise ValueError(
            f"the layer {layer} holds {', '.join(strange)}, which the naming diffusers has no form for; "
            "save with the naming kohya or comfy"
        )
    factors = _factors(layer, parts)
    out: dict[str, Tensor] = {}
    for name in diffusers_names(layer, structure):
        up, down, scale = fuse.unfuse(layer, name.piece, factors) if name.piece else factors
        if scale != 1.0:
            up = up.to(torch.float32) * scale
        out[name.up] = up.contiguous().clone()
        out[name.down] = down.contiguous().clone()
    return out
