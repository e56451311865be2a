"""What each layer of a LoRA is (LoRA, LoHa, LoKr, …), and its ΔW where the tensors alone tell it.

LoHa's and LoKr's forms are those of LyCORIS (Yeh et al. 2023, arXiv 2309.14859, §3) as the host applies them. What
turns or scales the base weight (DoRA, OFT, BOFT, GLoRA) has no ΔW without that weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from . import suffixes, svd
from .keys import group, to_deltas
from .resolve import layer_name
from .svd import Svd, matrix

LORA, LOHA, LOKR, FULL = "LoRA", "LoHa", "LoKr", "full difference"
DORA, OFT, BOFT, GLORA, OTHER = "DoRA", "OFT", "BOFT", "GLoRA", "bias or norm"
_BESIDE = {"diff_b", "w_norm", "b_norm", "set_weight", "reshape_weight"}
"""What can stand beside any kind, and is no part of ΔW."""
# 3×3 convolutions of the UNets; LyCORIS flattens their kernel into the inputs, and the file does not say so.
_THREE = re.compile(r"\.(?:in_layers\.2|out_layers\.3|op|conv|input_blocks\.0\.0|out\.2)$")


@dataclass(frozen=True)
class LoraLayer:
    """The tensors of one layer.

    base: their keys without the suffix. name: the canonical layer. parts: suffix -> tensor.
    """

    base: str
    name: str
    parts: Mapping[str, Tensor]

    @property
    def kind(self) -> str:
        """One of this module's names."""
        there = set(self.parts)
        if "dora_scale" in there:
            return DORA
        if "oft_blocks" in there:
            return OFT if self.parts["oft_blocks"].ndim == 3 else BOFT
        if "a1.weight" in there:
            return GLORA
        if suffixes.UP in there or suffixes.DOWN in there:
            return LORA
        for start, kind in (("hada_", LOHA), ("lokr_", LOKR)):
            if any(suffix.startswith(start) for suffix in there):
                return kind
        return FULL if "diff" in there and self.parts["diff"].ndim >= 2 else OTHER

    @property
    def rank(self) -> int | None:
        """The rank that the file gives the layer: of LoHa, that of each of its two products."""
        if suffixes.DOWN in self.parts:
            return int(self.parts[suffixes.DOWN].shape[0])
        named = ("hada_w1_b", "lokr_w2_b", "lokr_w1_b")
        return next((int(self.parts[key].shape[0]) for key in named if key in self.parts), None)

    @property
    def alpha(self) -> float | None:
        """alpha as the file has it; None where it has none."""
        alpha = self.parts.get(suffixes.ALPHA)
        return float(alpha) if alpha is not None and alpha.numel() == 1 else None

    def difference(self) -> dict[str, Tensor]:
        """The tensors that ΔW is made of, alpha with them; not what stands beside, such as the bias's difference."""
        return {suffix: tensor for suffix, tensor in self.parts.items() if suffix not in _BESIDE}

    def svd(self) -> Svd | None:
        """Of ΔW; None where it has none without the base weight. DoRA: of the low-rank part, before it is normalised.

        Raises ValueError naming the layer where its tensors do not belong together, or hold NaN.
        """
        if self.kind in (OFT, BOFT, GLORA, OTHER):
            return None
        for suffix, tensor in self.difference().items():
            if not bool(torch.isfinite(tensor.to(torch.float32)).all()):  # float8 has no isfinite
                raise ValueError(
                    f"the layer {self.name} holds NaN or infinity ({suffix}): the file is damaged, or its training "
                    "diverged. Use an earlier one, or train again with a lower learning rate"
                )
        if suffixes.UP in self.parts or suffixes.DOWN in self.parts:
            pair = (suffixes.UP, suffixes.DOWN, suffixes.MID, suffixes.ALPHA)
            (delta,) = to_deltas({f"{self.base}.{s}": self.parts[s] for s in pair if s in self.parts}).values()
            return svd.of_pair(delta.up, delta.down, delta.scale)
        try:
            if any(suffix.startswith("hada_") for suffix in self.parts):
                return _loha(self.parts, self.alpha)
            if any(suffix.startswith("lokr_") for suffix in self.parts):
                return _lokr(self.parts, self.alpha)
            return svd.of_matrix(self.parts["diff"])
        except (KeyError, RuntimeError, IndexError) as error:
            raise ValueError(self._malformed()) from error

    def _malformed(self) -> str:
        shapes = ", ".join(f"{suffix} {tuple(tensor.shape)}" for suffix, tensor in self.parts.items())
        return f"the layer {self.name} is incomplete or malformed: it has {shapes}"

    def delta(self) -> Tensor:
        """ΔW whole, (out, everything else), float64; of LoRA, LoHa, LoKr and full differences.

        Raises ValueError naming the layer where its tensors do not belong together.
        """
        if self.kind == LORA:
            pair = (suffixes.UP, suffixes.DOWN, suffixes.MID, suffixes.ALPHA)
            (pair_delta,) = to_deltas({f"{self.base}.{s}": self.parts[s] for s in pair if s in self.parts}).values()
            return pair_delta.scale * matrix(pair_delta.up) @ matrix(pair_delta.down)
        try:
            if self.kind == LOHA:
                scale, (up1, down1), (up2, down2) = _hadamard(self.parts, self.alpha)
                return scale * (up1 @ down1) * (up2 @ down2)
            if self.kind == LOKR:
                one, other, scale = _kronecker(self.parts, self.alpha)
                return scale * torch.kron(one, other)
            return matrix(self.parts["diff"])
        except (KeyError, RuntimeError, IndexError) as error:
            raise ValueError(self._malformed()) from error

    def kernel(self) -> tuple[int, ...]:
        """() of a matrix, (kh, kw) of a convolution, of what the tensors and the layer's name tell."""
        shapes = [self.parts[key].shape[2:] for key in (suffixes.MID, "hada_t1", "lokr_t2") if key in self.parts]
        shapes += [self.parts[key].shape[2:] for key in (suffixes.DOWN, "lokr_w2", "diff") if key in self.parts]
        if shapes:
            return tuple(shapes[0])
        return (3, 3) if self.kind in (LOHA, LOKR) and _THREE.search(f".{self.name}") else ()


def lora_layers(tensors: Mapping[str, Tensor]) -> tuple[list[LoraLayer], list[str]]:
    """The layers of a LoRA in comfy naming, in its order, and the keys that are no part of one. An alpha alone is none.

    Raises ValueError where a key is there twice.
    """
    groups, others = group(tensors)
    layers = [LoraLayer(base, layer_name(base), parts) for base, parts in groups.items()]
    return [layer for layer in layers if set(layer.parts) != {suffixes.ALPHA}], others


def count(parts: Mapping[str, Tensor]) -> int:
    """Numbers in the tensors, alpha left out."""
    return sum(tensor.numel() for suffix, tensor in parts.items() if suffix != suffixes.ALPHA)


def _loha(parts: Mapping[str, Tensor], alpha: float | None) -> Svd:
    """scale · (A₁B₁ ∘ A₂B₂). It is a pair of rank r²: rows of one factor's columns multiplied with the other's."""
    scale, (up1, down1), (up2, down2) = _hadamard(parts, alpha)
    if up1.shape[1] * up2.shape[1] >= min(up1.shape[0], down1.shape[1]):
        return svd.of_matrix(scale * (up1 @ down1) * (up2 @ down2))
    up = torch.einsum("oi,oj->oij", up1, up2).flatten(1)
    return svd.of_pair(up, torch.einsum("in,jn->ijn", down1, down2).flatten(0, 1), scale)


def _hadamard(
    parts: Mapping[str, Tensor], alpha: float | None
) -> tuple[float, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """scale, (A₁, B₁), (A₂, B₂) of a LoHa."""
    scale = 1.0 if alpha is None else alpha / parts["hada_w1_b"].shape[0]
    one, other = (_product(parts, f"hada_w{n}_a", f"hada_w{n}_b", f"hada_t{n}") for n in (1, 2))
    return scale, one, other


def _lokr(parts: Mapping[str, Tensor], alpha: float | None) -> Svd:
    """scale · (W₁ ⊗ W₂)."""
    return svd.of_kronecker(*_kronecker(parts, alpha))


def _kronecker(parts: Mapping[str, Tensor], alpha: float | None) -> tuple[Tensor, Tensor, float]:
    """W₁, W₂ (each whole or a product in the file; as a matrix) and scale of a LoKr."""
    one, other = _whole(parts, "lokr_w1", ""), _whole(parts, "lokr_w2", "lokr_t2")
    # alpha counts where there is a product, and the host divides it by the second's rank where both are
    rank = next((parts[b].shape[0] for b in ("lokr_w2_b", "lokr_w1_b") if b in parts), None)
    return one, other, 1.0 if alpha is None or rank is None else alpha / rank


def _whole(parts: Mapping[str, Tensor], name: str, core: str) -> Tensor:
    if name in parts:
        return matrix(parts[name])
    up, down = _product(parts, f"{name}_a", f"{name}_b", core)
    return up @ down


def _product(parts: Mapping[str, Tensor], a: str, b: str, core: str) -> tuple[Tensor, Tensor]:
    """Two matrices whose product is a · b. With a Tucker core a stands the other way round, and the core brings the
    kernel: W[p,r,…] = Σ core[i,j,…] a[i,p] b[j,r]."""
    if core not in parts:
        return matrix(parts[a]), matrix(parts[b])
    middle = matrix(parts[core]).reshape(*parts[core].shape[:2], -1)
    return matrix(parts[a]).T, torch.einsum("ijx,jr->irx", middle, matrix(parts[b])).flatten(1)


def as_kernel(down: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """(r, in · kh · kw) as (r, in, kh, kw); as it is where there is no kernel, or its size does not fit."""
    size = math.prod(kernel)
    return down.reshape(len(down), -1, *kernel) if kernel and down.shape[1] % size == 0 else down
