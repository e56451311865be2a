"""The forward pass of a plain LoRA layer with less to compute, and less to compute again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .recompute import replaced_forward


def weighted(h: Tensor, weights: Tensor) -> Tensor:
    """Λ h, the components on the last dimension (Linear), or the first after the batch (Conv2d, four dimensions)."""
    weights = weights.to(h.dtype)
    return h * (weights[:, None, None] if h.ndim == 4 else weights)


@contextmanager
def lean_branches(modules: Mapping[str, nn.Module]) -> Iterator[int]:
    """Compute y = W x + up(alpha/rank · down(x)) in this order: the branch first, W last.

    What peft's layers compute, up to rounding, with three differences:

    - the scale goes onto the rank's few channels, not onto the output;
    - W last: a frozen layer is the last to hand over what it keeps, and does so before it computes, so that the last
      layer of a recomputed block is not computed again (:class:`.regions.Region`);
    - beside a bf16 model the branch computes in bf16, as under autocast, with the factors kept in fp32: no fp32 copy
      of each layer's input is kept for the backward pass.

    Only plain LoRA beside Linear and Conv2d; layers of any other kind (DoRA, LoHa…) are left alone, and so is one
    whose adapter is turned off meanwhile.

    Yields:
        How many layers take this way.
    """
    with ExitStack() as stack:
        count = 0
        for module in modules.values():
            for layer in list(module.modules()):
                if (forward := _lean(layer)) is not None:
                    stack.enter_context(replaced_forward(layer, forward))
                    count += 1
        yield count


def _lean(layer: Any) -> Callable[..., Any] | None:
    """The layer's new forward, or None: it is not a plain LoRA layer."""
    from peft.tuners.lora import layer as lora

    if type(layer) not in (lora.Linear, lora.Conv2d) or layer.merged or len(layer.lora_A) != 1:
        return None
    (name,) = layer.lora_A
    if getattr(layer, "use_dora", {}).get(name) or name in getattr(layer, "lora_variant", {}):
        return None
    if layer.lora_bias.get(name) if isinstance(getattr(layer, "lora_bias", None), dict) else False:
        return None
    usual, base = layer.forward, layer.base_layer
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    linear = type(layer) is lora.Linear
    weights = getattr(layer, "component_weights", None)  # of LoRA²: they change at each step

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or layer.disable_adapters or layer.active_adapters != [name]:
            return usual(x, *args, **kwargs)
        a, b, scale = down.weight, up.weight, layer.scaling[name]
        inner = x
        if x.dtype == torch.bfloat16:
            a, b = a.to(x.dtype), b.to(x.dtype)
        elif x.dtype != a.dtype:
            inner = x.to(a.dtype)
        inner = dropout(inner)
        h = F.linear(inner, a) if linear else down._conv_forward(inner, a, None)
        if weights is not None:
            h = weighted(h, weights())
        elif scale != 1.0:
            h = h * scale
        change = F.linear(h, b) if linear else up._conv_forward(h, b, None)
        result = base(x)
        return result + (change if change.dtype == result.dtype else change.to(result.dtype))

    return forward
