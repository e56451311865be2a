"""Adapters that are other products than that of two thin matrices: LoHa, LoKr, OFT."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..lora.suffixes import ALPHA
from .adapters import NAME, LayerAdapter, Method, Slot
from .layer_rules import LayerPlan


class LoHa(LayerAdapter):
    """ΔW = scale · (w1_a w1_b) ⊙ (w2_a w2_b) (Hyeon-Woo et al. 2022, arXiv 2108.06098, prop. 1), through peft."""

    zeros = frozenset({"hada_w2_b"})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        super().__init__(layer, plan, method)
        layer.scaling[NAME] = self.scale

    def _slots(self) -> dict[str, Slot]:
        return {
            name: (getattr(self.layer, name), NAME) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        }

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), ALPHA: torch.tensor(self.scale * self.plan.rank)}

    def change(self) -> Tensor:
        return _by_peft(self.layer)


class LoKr(LayerAdapter):
    """ΔW = scale · w1 ⊗ w2, w2 of low rank where that is smaller (Edalati et al. 2022, arXiv 2212.10650), through peft.
    Where it is not, files have no place for a scale, and it is 1."""

    zeros = frozenset({"lokr_w1"})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        super().__init__(layer, plan, method)
        if "lokr_w2" in self.slots:
            self.scale = 1.0
        layer.scaling[NAME] = self.scale
        layer._get_delta_activations = self._branch

    def _slots(self) -> dict[str, Slot]:
        names = ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
        return {name: (getattr(self.layer, name), NAME) for name in names if NAME in getattr(self.layer, name)}

    def tensors(self) -> dict[str, Tensor]:
        own = super().tensors()
        return own if "lokr_w2" in own else {**own, ALPHA: torch.tensor(self.scale * self.plan.rank)}

    def _branch(self, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(w1 ⊗ w2) x in place of peft's, which makes the product first: w2 on each part of x, then w1 across them.

        Output l·K + k is Σ w1[l, m] w2[k, n] x[m·N + n]: a third of the time. bf16 is met in bf16, as autocast would.
        """
        factors = self.parameters()
        dtype = x.dtype if x.dtype == torch.bfloat16 else factors["lokr_w1"].dtype
        small, *large = (factor.to(dtype) for factor in factors.values())  # w1, then w2 or its two
        base, x = self.base, x.to(dtype)
        if base.weight.ndim == 2:
            parts = torch.unflatten(x, -1, (small.shape[1], -1))
            for factor in reversed(large):
                parts = F.linear(parts, factor)
            outputs: Tensor = torch.einsum("...mk,lm->...lk", parts, small) * self.scale
            return outputs.flatten(-2)
        parts = torch.unflatten(x, 1, (small.shape[1], -1))
        images = parts.flatten(0, 1)
        kernel = large[-1].view(large[-1].shape[0], images.shape[1], *base.kernel_size)
        images = F.conv2d(images, kernel, None, base.stride, base.padding, base.dilation)
        if len(large) == 2:
            images = F.conv2d(images, large[0][:, :, None, None])
        parts = torch.unflatten(images, 0, parts.shape[:2])
        outputs = torch.einsum("bmkhw,lm->blkhw", parts, small) * self.scale
        return outputs.flatten(1, 2)

    def change(self) -> Tensor:
        return _by_peft(self.layer)


class OFT(LayerAdapter):
    """W' = R W, see :class:`.oft.OFTLayer`; the rank is the largest block. No alpha: the host takes it for a bound."""

    zeros = frozenset({"oft_blocks"})

    def _slots(self) -> dict[str, Slot]:
        return {"oft_blocks": (self.layer, "oft_blocks")}

    def change(self) -> Tensor:
        turn = self.layer.turn().detach().float()
        rows = self.base.weight.detach().to(turn).flatten(1).unflatten(0, turn.shape[:2])
        return torch.einsum("nbi,nbc->nci", rows, turn).flatten(0, 1)


def _by_peft(layer: Any) -> Tensor:
    delta: Tensor = layer.get_delta_weight(NAME)
    return delta.detach().float().flatten(1)
