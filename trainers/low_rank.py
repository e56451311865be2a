"""The adapters of low rank: LoRA with its inits, and DoRA."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.delta import LowRankDelta
from ..lora.suffixes import ALPHA, DOWN, UP
from .adapters import NAME, LayerAdapter, Method, Slot, base_weight, copied
from .layer_rules import LayerPlan


class LowRank(LayerAdapter):
    """ΔW = scale · up · down (Hu et al. 2021, arXiv 2106.09685).

    With the inits PiSSA (Meng et al. 2024, arXiv 2404.02948) and OLoRA (Büyükakyüz 2024, arXiv 2406.01775) the factors
    begin as a part of W, which both papers take out of W. Here W stays as it is, and what the factors began as is
    subtracted beside it: ΔW = scale · (up · down − up₀ · down₀). The same function, for a W of any dtype; and as a
    file, [up, −up₀] and [down; down₀] are a LoRA of twice the rank for the base model as everybody has it.
    """

    zeros = frozenset({UP})
    faster = frozenset({UP})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        super().__init__(layer, plan, method)
        layer.scaling[NAME] = self.scale
        self.start: tuple[Tensor, Tensor] | None = None
        """(down₀, −up₀)"""

    def _slots(self) -> dict[str, Slot]:
        return {DOWN: (self.layer.lora_A[NAME], "weight"), UP: (self.layer.lora_B[NAME], "weight")}

    def begin(self, chance: torch.Generator, dtype: torch.dtype, device: torch.device | None) -> None:
        super().begin(chance, dtype, device)
        if self.method.init in ("pissa", "olora"):
            weight = base_weight(self.base).flatten(1)
            down, up = self.parameters()[DOWN], self.parameters()[UP]
            if self.method.init == "pissa":
                left, values, right = principal(weight, down.shape[0], chance)
                root = (values / self.scale).sqrt()
                factors = root[:, None] * right, left * root
            else:
                # The first columns of Q are those of the first columns of W, and R is Qᵀ W.
                q = torch.linalg.qr(weight[:, : down.shape[0]])[0]
                factors = q.T @ weight, q
            for suffix, old, new in ((DOWN, down, factors[0]), (UP, up, factors[1])):
                self.put(suffix, new.reshape(old.shape).to(old.device, dtype).contiguous())
            now = self.parameters()
            self.start = now[DOWN].detach().clone(), -now[UP].detach()
            self.layer.register_forward_hook(self._subtract)

    def drawn(self, suffix: str, shape: torch.Size, chance: torch.Generator) -> Tensor:
        if self.method.init == "gaussian":
            return torch.empty(shape).normal_(std=1 / shape[0], generator=chance)
        return super().drawn(suffix, shape, chance)

    def _subtract(self, layer: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        """A hook after the layer, whichever forward it has. A bf16 model is met in bf16, as autocast would."""
        if self.start is None or layer._disable_adapters:
            return out
        x, (down, up) = inputs[0], self.start
        dtype = x.dtype if x.dtype == torch.bfloat16 else down.dtype
        x, down, up = x.to(dtype), down.to(dtype), up.to(dtype)
        if up.ndim == 2:
            return torch.add(out, F.linear(F.linear(x, down), up), alpha=self.scale).to(out.dtype)
        a = layer.lora_A[NAME]
        low = F.conv2d(x, down, None, a.stride, a.padding, a.dilation)
        return torch.add(out, F.conv2d(low, up), alpha=self.scale).to(out.dtype)

    def train(self, mode: bool) -> None:
        self.layer.lora_dropout[NAME].train(mode)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(down, up) of the whole ΔW, what was there at the start taken off."""
        down, up = (self.parameters()[suffix].detach() for suffix in (DOWN, UP))
        if self.start is not None:
            down, up = torch.cat([down, self.start[0]]), torch.cat([up, self.start[1]], 1)
        return down, up

    def tensors(self) -> dict[str, Tensor]:
        down, up = self.factors()
        return {UP: copied(up), DOWN: copied(down), ALPHA: torch.tensor(self.scale * down.shape[0])}

    def change(self) -> Tensor:
        down, up = (self.parameters()[suffix].detach().float().flatten(1) for suffix in (DOWN, UP))
        if self.start is None:
            return self.scale * (up @ down)
        down0, up0 = self.start[0].float().flatten(1), -self.start[1].float().flatten(1)
        return self.scale * ((up - up0) @ down + up0 @ (down - down0))

    def squared_norm(self) -> Tensor:
        """‖B A‖² is the sum of (BᵀB) ∘ (A Aᵀ): products of rank × rank, and ΔW is never made."""
        if self.start is not None:  # a difference of two, whose last digits would be lost
            return super().squared_norm()
        return self.squared_norms([self])

    def alike(self) -> tuple[Any, ...] | None:
        if self.start is not None or type(self).squared_norm is not LowRank.squared_norm:
            return None
        down, up = self.parameters().values()
        return down.shape, up.shape, down.device

    @staticmethod
    def squared_norms(layers: Sequence[LowRank]) -> Tensor:
        """Σ ‖ΔW‖² of layers whose factors have the same shapes: a few kernels for all of them."""
        factors = [layer.parameters() for layer in layers]
        a, b = (torch.stack([each[suffix].detach() for each in factors]).float().flatten(2) for suffix in (DOWN, UP))
        squares = ((b.mT @ b) * (a @ a.mT)).sum((1, 2)).clamp_min(0)
        scales = {layer.scale for layer in layers}
        if len(scales) == 1:
            return scales.pop() ** 2 * squares.sum()
        return (squares * torch.tensor([layer.scale**2 for layer in layers]).to(squares, non_blocking=True)).sum()

    def delta(self) -> LowRankDelta:
        """ΔW, float32 on the CPU."""
        down, up = (copied(factor.float()) for factor in self.factors())
        return LowRankDelta(up, down, self.scale, "linear" if down.ndim == 2 else "conv")

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if self.start is not None and {UP, DOWN} <= set(tensors):
            rank = self.start[0].shape[0]
            down, up = tensors[DOWN], tensors[UP]
            if down.shape[0] == 2 * rank and up.shape[1] == 2 * rank:
                # Not found anew: another machine's decomposition has other last digits.
                self.start = down[rank:].to(self.start[0]), up[:, rank:].to(self.start[1])
                tensors = {**tensors, DOWN: down[:rank], UP: up[:, :rank]}
        super().load(tensors)


class Dora(LowRank):
    """W' = m · (W + ΔW)/‖W + ΔW‖, the norm a column (Liu et al. 2024, arXiv 2402.09353, eq. 5), beside peft's LoRA.

    A column is an input of the layer. peft takes the norm of each row in place of it; for that the host divides by
    another norm than it says, which its developers may mend any day, and older programs know columns alone. A factor
    of each column is one of each input: y = (W + ΔW)(g · x), with g = m/‖W + ΔW‖ and the norm held constant in the
    backward pass (§4.3).
    """

    zeros = frozenset({UP})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        inputs = layer.base_layer.weight.shape[1]
        layer.magnitude = nn.Parameter(torch.zeros(1, inputs, *(1 for _ in layer.base_layer.weight.shape[2:])))
        super().__init__(layer, plan, method)
        self.squares = torch.zeros(inputs)
        """(inputs,) ‖W‖² of each column."""

    def _slots(self) -> dict[str, Slot]:
        return {**super()._slots(), "dora_scale": (self.layer, "magnitude")}

    def begin(self, chance: torch.Generator, dtype: torch.dtype, device: torch.device | None) -> None:
        norm = _column_norms(base_weight(self.base))
        if self.base.weight.shape[0] == 1 or not bool(norm.all()):
            why = f"{int((norm == 0).sum())} of them are zero" if self.base.weight.shape[0] > 1 else "there is one row"
            raise ValueError(
                f"DoRA divides by the norm of each column of a weight, and {why}. Leave this layer out with a line in "
                f"layer_rules (rank=0), or choose the algorithm lora."
            )
        super().begin(chance, dtype, device)
        where = self.parameters()[UP].device
        self.squares = norm.square().to(where)
        self.put("dora_scale", norm.reshape(self.layer.magnitude.shape).to(where, dtype))
        self.layer.register_forward_pre_hook(self._scale_inputs)

    def drawn(self, suffix: str, shape: torch.Size, chance: torch.Generator) -> Tensor:
        return torch.zeros(shape) if suffix == "dora_scale" else super().drawn(suffix, shape, chance)

    def _scale_inputs(self, layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A hook before the layer, whichever forward it has."""
        if layer._disable_adapters:
            return None
        x: Tensor = inputs[0]
        gain = layer.magnitude.flatten() / self._norm()
        gain = gain if layer.magnitude.ndim == 2 else gain[:, None, None]
        # In the magnitude's own dtype: in bf16 a factor near 1 has steps of 0.4%.
        return ((x * gain).to(x.dtype), *inputs[1:])

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """‖W + s B A‖ of each column, without making it: ‖w‖² + 2 s w·Ba + s² ‖Ba‖²."""
        down, up = (self.parameters()[suffix].flatten(1) for suffix in (DOWN, UP))
        weight: Tensor = self.base.weight.detach().to(up.device)
        if weight.ndim == 2:
            across = (up.T.to(weight.dtype) @ weight).to(self.squares)
            a, b = down.to(self.squares), up.to(self.squares)
            squares = 2 * self.scale * (across * a).sum(0) + self.scale**2 * ((b.T @ b @ a) * a).sum(0)
            return (self.squares + squares).clamp_min(0).sqrt() + torch.finfo(squares.dtype).eps
        change = (self.scale * (up @ down)).reshape(weight.shape).to(self.squares)
        return _column_norms(weight.to(self.squares) + change) + torch.finfo(change.dtype).eps

    def squared_norm(self) -> Tensor:
        return LayerAdapter.squared_norm(self)

    def change(self) -> Tensor:
        delta = super().change()
        weight = base_weight(self.base).to(delta.device)
        adapted = weight + delta.reshape(weight.shape)
        gain = self.layer.magnitude.detach().to(weight) / _column_norms(adapted).reshape(self.layer.magnitude.shape)
        change: Tensor = gain * adapted - weight
        return change.flatten(1)

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "dora_scale": copied(self.layer.magnitude)}


def principal(weight: Tensor, rank: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, Vᵀ) of the ``rank`` largest singular values of a matrix, by a randomised range finder.

    Halko, Martinsson and Tropp 2011 (SIAM Review 53, alg. 4.4) with four power iterations and twice as many columns as
    wanted; exact where that is the whole matrix. A full decomposition of a large model takes an hour.
    """
    columns = min(2 * rank + 8, *weight.shape)
    basis = torch.randn(weight.shape[1], columns, generator=chance).to(weight)
    for _ in range(5):
        basis = torch.linalg.qr(weight @ basis)[0]
        last = basis
        basis = torch.linalg.qr(weight.mT @ basis)[0]
    left, values, right = torch.linalg.svd(last.mT @ weight, full_matrices=False)
    return (last @ left)[:, :rank], values[:rank], right[:rank]


def _column_norms(weight: Tensor) -> Tensor:
    """(inputs,) the norm of what each input of a Linear or Conv2d is multiplied with."""
    norms: Tensor = torch.linalg.vector_norm(weight.transpose(0, 1).flatten(1), dim=1)
    return norms
