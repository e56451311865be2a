"""Several LoRAs beside each layer at once, a coefficient for each input column of each of them, and no ΔW anywhere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.columns import Columns
from ..lora.delta import LowRankDelta
from .lora import split_names, unchanged
from .targets import PREFIX

MERGED, SUM, BASE = -1, -2, -3
"""What a model with branches computes: all LoRAs by their coefficients, all of them as they are, or none. A number from
0 on: that LoRA alone, which is a teacher."""


class _Down(torch.autograd.Function):
    """h = x (A diag(m))ᵀ of several LoRAs at once, which keeps x and m but not the product A diag(m).

    ∂L/∂m[i, c] = Σ_r A[r, c] Σ_t g[t, r] x[t, c], over the rows r of LoRA i: a matrix of rank × inputs, never one of
    tokens × inputs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, m: Tensor, down: Tensor, scale: Tensor, ranks: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(x, m, down, scale)
        ctx.ranks = ranks
        return F.linear(x, _weighted(down, scale, m, ranks).to(x.dtype))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, m, down, scale = ctx.saved_tensors
        for_x = g @ _weighted(down, scale, m, ctx.ranks).to(g.dtype) if ctx.needs_input_grad[0] else None
        across = (g.flatten(0, -2).T @ x.flatten(0, -2)).to(m.dtype)  # (Σr, in)
        each = (across * down.to(m.dtype) * scale).split(ctx.ranks)
        return for_x, torch.stack([rows.sum(0) for rows in each]), None, None, None


def _weighted(down: Tensor, scale: Tensor, m: Tensor, ranks: Sequence[int]) -> Tensor:
    """[s₁A₁ diag(m₁); s₂A₂ diag(m₂); …] (Σr, in, …) in m's dtype."""
    rows = torch.cat([one.expand(rank, -1) for one, rank in zip(m, ranks, strict=True)])
    further = [1] * (down.ndim - 2)
    return down.to(m.dtype) * (rows * scale).reshape(*rows.shape, *further)


class ZipLayer:
    """The LoRAs of one layer.

    Attributes:
        loras: their numbers, ascending.
        m: (len(loras), in) the coefficients: a parameter, ones that stay, or what somebody put in their place.
    """

    def __init__(
        self, name: str, layer: Any, deltas: Sequence[LowRankDelta | None], learns: bool, dtype: torch.dtype
    ) -> None:
        weight: Tensor = layer.weight
        self.layer = layer
        self.loras = tuple(number for number, delta in enumerate(deltas) if delta is not None)
        there = [delta for delta in deltas if delta is not None]
        for number, delta in zip(self.loras, there, strict=True):
            size = (delta.shape[0], math.prod(delta.shape[1:]))
            if size != (weight.shape[0], weight.shape[1:].numel()):
                raise ValueError(
                    f"LoRA {number + 1} changes {name} by {'×'.join(map(str, size))} numbers and the model's has "
                    f"{weight.shape[0]}×{weight.shape[1:].numel()}. Use LoRAs of this model"
                )
        self.ranks = tuple(delta.rank for delta in there)
        shape = weight.shape
        # In the dtype of the files, side by side: this is all that a LoRA takes on the device.
        common = there[0].up.dtype
        for delta in there[1:]:
            common = torch.promote_types(common, delta.up.dtype)
        downs = [delta.down.reshape(delta.rank, *shape[1:]).to(common) for delta in there]
        ups = [delta.up.flatten(1).to(common) for delta in there]
        self.down, self.up = _ordinary(torch.cat(downs)), _ordinary(torch.cat(ups, 1))
        scales = [torch.full((delta.rank, 1), delta.scale, dtype=dtype) for delta in there]
        self.scale = torch.cat(scales)
        self.m: Tensor = nn.Parameter(torch.ones(len(there), shape[1], dtype=dtype), requires_grad=learns)

    def to(self, device: torch.device) -> None:
        """Move everything."""
        self.down, self.up, self.scale = (each.to(device) for each in (self.down, self.up, self.scale))
        self.m = nn.Parameter(self.m.detach().to(device), requires_grad=self.m.requires_grad)

    def branch(self, x: Tensor, which: int) -> Tensor | None:
        """What is added to the layer's own output; None where nothing is."""
        if which == BASE or (which >= 0 and which not in self.loras):
            return None
        dtype = x.dtype if x.dtype == torch.bfloat16 else torch.promote_types(x.dtype, torch.float32)
        rows, ranks = slice(None), self.ranks
        m: Tensor = self.m if which == MERGED else torch.ones_like(self.m)
        if which >= 0:
            place = self.loras.index(which)
            start = sum(self.ranks[:place])
            rows, ranks, m = slice(start, start + self.ranks[place]), self.ranks[place : place + 1], m[:1]
        x, up = x.to(dtype), self.up[:, rows].to(dtype)
        down, scale = self.down[rows], self.scale[rows]
        if isinstance(self.layer, nn.Linear):
            low: Tensor = _Down.apply(x, m, down, scale, ranks)  # type: ignore[no-untyped-call]
            return F.linear(low, up)
        layer = self.layer
        low = F.conv2d(x, _weighted(down, scale, m, ranks).to(dtype), None, layer.stride, layer.padding, layer.dilation)
        return F.conv2d(low, up[:, :, None, None])

    def overlap(self) -> Tensor:
        """Σ_{i<j} mean |mᵢ ⊙ mⱼ|, a scalar."""
        pairs = [(self.m[i] * self.m[j]).abs().mean() for i in range(len(self.m)) for j in range(i)]
        return torch.stack(pairs).sum()


class ZipBranches:
    """All layers that have branches, by canonical name. Made by :func:`zipped`.

    Attributes:
        which: what the model computes now; see :data:`MERGED`.
        layers: canonical name -> branches.
        calls: of each layer, how often its branch was used.
    """

    def __init__(self, layers: Mapping[str, ZipLayer]) -> None:
        self.layers = dict(layers)
        self.which = MERGED
        self.calls = dict.fromkeys(layers, 0)

    @property
    def learning(self) -> dict[str, ZipLayer]:
        """Those whose coefficients are learnt."""
        return {name: layer for name, layer in self.layers.items() if layer.m.requires_grad}

    def parameters(self) -> list[nn.Parameter]:
        """Their coefficients, in a fixed order."""
        return [layer.m for layer in self.learning.values() if isinstance(layer.m, nn.Parameter)]

    @contextmanager
    def only(self, which: int) -> Iterator[None]:
        """Another computation, without gradients, for as long as the context lasts."""
        before, self.which = self.which, which
        try:
            with torch.no_grad():
                yield
        finally:
            self.which = before

    def overlap(self) -> Tensor:
        """Σ over layers and pairs of LoRAs of mean |mᵢ ⊙ mⱼ|; layers that one LoRA has alone add nothing."""
        shared = [layer.overlap() for layer in self.learning.values() if len(layer.loras) > 1]
        return torch.stack(shared).sum() if shared else torch.zeros(())

    def columns(self) -> dict[str, Columns]:
        """Canonical layer -> its coefficients, of those that are learnt; float32 on the CPU."""
        return {
            name: Columns(layer.loras, layer.m.detach().float().cpu().clone()) for name, layer in self.learning.items()
        }

    def sizes(self) -> tuple[int, int]:
        """(bytes of the LoRAs' factors, numbers of the coefficients that are learnt)."""
        held = sum(each.nbytes for layer in self.layers.values() for each in (layer.down, layer.up, layer.scale))
        return held, sum(parameter.numel() for parameter in self.parameters())


@contextmanager
def zipped(
    module: nn.Module,
    loras: Sequence[Mapping[str, LowRankDelta]],
    learning: Sequence[str],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Iterator[ZipBranches]:
    """Put the LoRAs beside the layers of ``module`` for as long as the context lasts, all coefficients at 1.

    y = W x + Σᵢ sᵢ Bᵢ (Aᵢ diag(mᵢ)) x: a parallel branch. W is never written to and may be of any dtype; ΔW is never
    made. The module is as it was afterwards.

    Args:
        loras: canonical layer -> ΔW of each, the diffusion model's alone.
        learning: canonical names of the layers whose coefficients are learnt; the others stay at 1.
        device: of factors and coefficients.
        dtype: of the coefficients.

    Raises:
        ValueError: a layer that the model does not have, or of another size.
    """
    names = list(dict.fromkeys(name for lora in loras for name in lora))
    wanted, handles = set(learning), []
    made: dict[str, ZipLayer] = {}
    for name, path in zip(names, split_names({PREFIX: module}, names)[PREFIX], strict=True):
        try:
            layer = module.get_submodule(path)
        except AttributeError as why:
            raise ValueError(f"The model has no layer {name}, which a LoRA changes. Use LoRAs of this model.") from why
        if not isinstance(layer, nn.Linear | nn.Conv2d) or (isinstance(layer, nn.Conv2d) and layer.groups != 1):
            raise ValueError(f"The layer {name} is a {type(layer).__name__}; expected a Linear or an ungrouped Conv2d.")
        made[name] = ZipLayer(name, layer, [lora.get(name) for lora in loras], name in wanted, dtype)
        made[name].to(device)
    branches = ZipBranches(made)

    def adding(name: str, branch: ZipLayer) -> Any:
        def hook(_layer: nn.Module, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
            change = branch.branch(inputs[0], branches.which)
            branches.calls[name] += 1
            return out if change is None else out + change.to(out.dtype)

        return hook

    with unchanged(module):
        module.requires_grad_(False)
        try:
            handles += [branch.layer.register_forward_hook(adding(name, branch)) for name, branch in made.items()]
            yield branches
        finally:
            for handle in handles:
                handle.remove()


def _ordinary(tensor: Tensor) -> Tensor:
    """No inference tensor, for such a one cannot be saved for the backward pass."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()
