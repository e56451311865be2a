"""Several LoRAs into one ordinary LoRA, layer by layer, and what happened to each layer."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..lora import krylov, spectrum, suffixes, svd
from ..lora.kinds import as_kernel
from ..lora.model import LoraTensors
from ..lora.on_base import BaseWeights
from ..lora.randomness import generator
from ..lora.resize import Truncation
from ..lora.svd import Svd
from .align import Alignment, Source
from .knots import knots
from .layer_weights import LayerWeights
from .measures import UNMEASURED, SignConflict, mean_cosine, sign_conflict
from .metadata import merged_metadata
from .methods import Method, method_of
from .options import MergeOptions
from .stack import LayerStack, pair_norm
from .trim import magnitude_at

logger = logging.getLogger(__name__)

_ROUNDING = torch.finfo(torch.float32).eps
"""Singular values below this share of what was added up are what float32 left of it."""


@dataclass(frozen=True)
class MergedLayer:
    """What happened to one layer.

    name: the canonical layer; a bias or norm ends in its suffix. shape: (out, in · kh · kw), or (n,). weights, norms:
    of each LoRA, wᵢ and ‖wᵢΔWᵢ‖_F, 0 where it leaves the layer alone. ranks: of each, None where it is no low-rank pair
    or the layer no matrix. rank: of the merged layer, None likewise. norm: ‖ΔW‖_F of the merged ΔW before it is cut.
    energy: the share of its Σs² that is kept. cosine: the mean over all pairs; NaN where there is none or it was not
    measured; conflict likewise.
    """

    name: str
    shape: tuple[int, ...]
    weights: tuple[float, ...]
    norms: tuple[float, ...]
    ranks: tuple[int | None, ...]
    rank: int | None
    norm: float
    energy: float
    cosine: float = math.nan
    conflict: SignConflict = UNMEASURED

    @property
    def error(self) -> float:
        """‖ΔW − cut‖_F / ‖ΔW‖_F of the re-compression: √(1 − energy)."""
        return math.sqrt(max(0.0, 1 - self.energy))


def merge_loras(
    sources: Sequence[Source],
    options: MergeOptions | None = None,
    rules: Sequence[LayerWeights] = (),
    progress: Callable[[int, int], None] | None = None,
    base: BaseWeights | None = None,
) -> tuple[LoraTensors, list[MergedLayer]]:
    """One LoRA in comfy naming, float32, each layer with scale 1 (alpha = rank), and what happened to each layer.

    sources: any number, of any kinds, ranks, alphas, dtypes and layers, of one architecture. A layer in which every
    weight is 0 is left out. rules: weights of single layers (``parse_layer_weights``). progress(done, total) is called
    after each layer. base: weights of the model that the LoRAs are for; DoRA and OFT need them, the others do not look
    at them. Of the sources, one layer is held at a time.
    Raises ValueError where the LoRAs do not fit together (see ``Alignment``), the options do not suit the method or the
    number of LoRAs, or every weight is 0.
    """
    options = options or MergeOptions()
    method = method_of(options, len(sources))
    aligned = Alignment(sources, rules, base)
    limits = _limits(aligned, options) if options.scope == "model" else None
    out: dict[str, Tensor] = {}
    found = []
    for number, (slot, stack) in enumerate(aligned, 1):
        if stack.used:
            parts, layer = _merge(stack, method, options, limits)
            out |= {f"{slot.base}.{suffix or slot.suffix}": tensor for suffix, tensor in parts.items()}
            found.append(layer)
        if progress:
            progress(number, len(aligned.slots))
    if not out:
        raise ValueError("every weight is 0 in every layer, so that nothing is left to merge")
    logger.info("merged %d LoRAs in %d layers by %s", len(sources), len(found), options.method)
    return LoraTensors(out, merged_metadata(aligned.sources, options, rules, out)), found


def _merge(
    stack: LayerStack, method: Method, options: MergeOptions, limits: Sequence[float] | None
) -> tuple[dict[str, Tensor], MergedLayer]:
    """The tensors of one layer by suffix ("" for that of the slot), and its figures."""
    measured = MergedLayer(
        name=stack.name,
        shape=stack.shape,
        weights=stack.weights,
        norms=stack.norms(),
        ranks=stack.ranks if len(stack.shape) == 2 else (None,) * len(stack.parts),
        rank=None,
        norm=0.0,
        energy=1.0,
    )
    weights = torch.tensor(stack.weights, dtype=torch.float64)
    gram = stack.gram() if options.measure or method.needs_gram else None
    if options.measure and gram is not None:
        measured = replace(measured, cosine=mean_cosine(gram, weights), conflict=sign_conflict(stack))
    merged = _combine(stack, method, options, limits, gram, weights)
    if isinstance(merged, Tensor) and merged.ndim == 1:
        return {"": merged}, replace(measured, norm=float(merged.norm()))
    truncation = options.output.truncation(stack.rank_sum)
    if isinstance(merged, tuple) and truncation is None and method.keeps_factors:
        up, down = merged
        return _tensors(up, down, stack), replace(measured, rank=len(down), norm=pair_norm(up, down, 1.0))
    leading = _leading(merged, truncation)
    found = leading or (svd.of_matrix(merged) if isinstance(merged, Tensor) else svd.of_pair(*merged, 1.0))
    values = torch.where(
        found.values > _ROUNDING * abs(options.scale) * sum(measured.norms), found.values, 0.0
    )  # of ΔW that cancel, say
    rank = max(1, int((values > 0).sum())) if truncation is None else truncation.rank_for(values)
    up, down = (factor.to(torch.float32) for factor in found.factors(rank))
    if leading:
        norm = float(merged.norm(dtype=torch.float64)) if isinstance(merged, Tensor) else pair_norm(*merged, 1.0)
        kept = min(1.0, (spectrum.norm(values[:rank]) / norm) ** 2) if norm > 0 else 1.0
    else:
        norm, kept = spectrum.norm(values), 1 - float(spectrum.tails(values)[rank])
    return _tensors(up, down, stack), replace(measured, rank=rank, norm=norm, energy=kept)


def _leading(merged: Tensor | tuple[Tensor, Tensor], truncation: Truncation | None) -> Svd | None:
    """The singular values that are wanted, where that many are told beforehand and are few of a large layer's."""
    if truncation is None or truncation.mode != "rank":
        return None
    rank = truncation.rank
    if isinstance(merged, Tensor):
        return krylov.leading(merged, rank) if krylov.pays((merged.shape[0], merged.shape[1]), rank) else None
    up, down = merged
    many = len(down) >= 4 * rank  # with fewer, QR of the factors is as quick, and exact
    return krylov.leading(merged, rank) if many and krylov.pays((up.shape[0], down.shape[1]), rank) else None


def _combine(
    stack: LayerStack,
    method: Method,
    options: MergeOptions,
    limits: Sequence[float] | None,
    gram: Tensor | None,
    weights: Tensor,
) -> Tensor | tuple[Tensor, Tensor]:
    """λ times the merge of one layer: as factors (up, down) where they hold it exactly and are smaller, else whole."""
    if method.weigh:
        coefficients = options.scale * method.weigh(weights if gram is None else gram, weights)
        return stack.factors(coefficients) if stack.is_small else stack.combined(coefficients)
    if method.shared_basis and len(stack.shape) == 2:
        up, down = knots(stack, lambda parts: _stacked(parts, method, stack, options, None))
        return up, down * options.scale
    return _stacked(stack.weighted(), method, stack, options, limits) * options.scale


def _stacked(
    deltas: Iterable[Tensor], method: Method, stack: LayerStack, options: MergeOptions, limits: Sequence[float] | None
) -> Tensor:
    assert method.stacked is not None
    if limits is not None:
        whole, options = deltas, replace(options, density=1.0)
        mine = [limits[i] for i in stack.used]
        deltas = (torch.where(delta.abs() >= limit, delta, 0.0) for delta, limit in zip(whole, mine, strict=True))
    chances = [generator(options.seed, "merge", stack.name, i) for i in stack.used]
    return method.stacked(deltas, options, chances)


def _limits(aligned: Alignment, options: MergeOptions) -> list[float]:
    """Of each LoRA the magnitude from which on its weighted entries stay, over all its layers together."""

    def layers(index: int) -> Iterator[Tensor]:
        for slot in aligned.slots:
            stack = aligned.load(slot, only=index)
            if index in stack.used:
                yield stack.delta(index) * stack.weights[index]

    return [magnitude_at(partial(layers, i), options.density) for i in range(len(aligned.sources))]


def _tensors(up: Tensor, down: Tensor, stack: LayerStack) -> dict[str, Tensor]:
    down = as_kernel(down, stack.kernel)
    if down.ndim == 4:
        up = up[:, :, None, None]
    alpha = torch.tensor(float(len(down)), dtype=torch.float32)
    return {suffixes.UP: up.contiguous(), suffixes.DOWN: down.contiguous(), suffixes.ALPHA: alpha}
