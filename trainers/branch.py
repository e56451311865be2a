"""The forward pass of a plain LoRA layer with less to compute, and less to compute again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .low_copies import LowCopies
from .recompute import replaced_forward


def weighted(h: Tensor, weights: Tensor) -> Tensor:
    """Λ h, the components on the last dimension (Linear), or the first after the batch (Conv2d, four dimensions)."""
    weights = weights.to(h.dtype)
    return h * (weights[:, None, None] if h.ndim == 4 else weights)


@contextmanager
def lean_branches(modules: Mapping[str, nn.Module], *, copies: bool = True) -> Iterator[int]:
    """Compute y = W x + up(alpha/rank · down(x)) in this order: the branch first, W last.

    What peft's layers compute, up to rounding, with these differences:

    - the scale goes onto the rank's few channels, not onto the output;
    - W last: a frozen layer is the last to hand over what it keeps, and does so before it computes, so that the last
      layer of a recomputed block is not computed again (:class:`.regions.Region`);
    - W x is added to the branch by the matrix product itself where the layer computes nothing else. On a GPU each
      operation that is saved counts: with hundreds of adapted layers it waits for Python, not Python for it;
    - beside a bf16 model the branch computes in bf16, as under autocast, with the factors kept in fp32: no fp32 copy
      of each layer's input is kept for the backward pass. The factors are cast all at once (:mod:`.low_copies`).

    Only plain LoRA beside Linear and Conv2d; layers of any other kind (DoRA, LoHa…) are left alone, and so is one
    whose adapter is turned off meanwhile.

    Args:
        copies: False: each layer casts its own factors, which a compiler wants to see.

    Yields:
        How many layers take this way.
    """
    with ExitStack() as stack:
        count = 0
        for module in modules.values():
            lean = [layer for layer in module.modules() if _is_plain(layer)]
            low = LowCopies()
            for layer in lean:
                stack.enter_context(replaced_forward(layer, _lean(layer, low)))
            if lean and copies:
                stack.enter_context(low.during(module))
            count += len(lean)
        yield count


def _is_plain(layer: Any) -> bool:
    from peft.tuners.lora import layer as lora

    if type(layer) not in (lora.Linear, lora.Conv2d) or layer.merged or len(layer.lora_A) != 1:
        return False
    (name,) = layer.lora_A
    if getattr(layer, "use_dora", {}).get(name) or name in getattr(layer, "lora_variant", {}):
        return False
    bias = getattr(layer, "lora_bias", None)
    return not (isinstance(bias, dict) and bias.get(name))


def _lean(layer: Any, low: LowCopies) -> Callable[..., Any]:
    """The layer's new forward."""
    (name,) = layer.lora_A
    usual, base = layer.forward, layer.base_layer
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    linear, drops = isinstance(base, nn.Linear), not isinstance(dropout, nn.Identity)
    product = linear and _only_multiplies(base)
    weights = getattr(layer, "component_weights", None)  # of LoRA²: they change at each step
    scale = 1.0 if weights is not None else float(layer.scaling[name])
    copies = low.of(down, up, scale)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or layer.disable_adapters or layer.active_adapters != [name]:
            return usual(x, *args, **kwargs)
        a, b, rest = down.weight, up.weight, scale
        inner = x
        if x.dtype != a.dtype:
            if x.dtype == torch.bfloat16:
                a, b, rest = copies()
            else:
                inner = x.to(a.dtype)
        weight = base._parameters["weight"] if product else None
        if weight is not None and inner is x and _meets(x, weight) and not _watched(base):
            rows = x.flatten(0, -2) if x.ndim > 2 else x
            h = _scaled((dropout(rows) if drops else rows).mm(a.t()), rest, weights)
            bias = base._parameters["bias"]
            change = h.mm(b.t()) if bias is None else torch.addmm(bias, h, b.t())
            change.addmm_(rows, weight.t())
            return torch.unflatten(change, 0, x.shape[:-1]) if x.ndim > 2 else change
        if drops:
            inner = dropout(inner)
        h = _scaled(F.linear(inner, a) if linear else down._conv_forward(inner, a, None), rest, weights)
        change = F.linear(h, b) if linear else up._conv_forward(h, b, None)
        result = base(x)
        if change.dtype == result.dtype and change.shape == result.shape:
            return change.add_(result)  # into memory of our own
        return result + change.to(result.dtype)

    return forward


def _scaled(h: Tensor, scale: float, weights: Callable[[], Tensor] | None) -> Tensor:
    if weights is not None:
        return weighted(h, weights())
    return h if scale == 1.0 else h * scale


def _meets(x: Tensor, weight: Tensor) -> bool:
    """Whether there is nothing to cast or to move. Hosts keep some weights in fp8, or elsewhere."""
    return x.ndim > 1 and weight.dtype == x.dtype and weight.device == x.device


def _watched(base: nn.Module) -> bool:
    return bool(base._forward_hooks or base._forward_pre_hooks)


def _only_multiplies(base: Any) -> bool:
    """Whether a layer, met in its weight's dtype, is F.linear(x, weight, bias): it is asked, for hosts have their own.

    Nothing is computed: the product that it asks for is answered with a mark, which it has to hand back.
    """
    weight, bias = base.weight, base.bias
    if type(weight.data) is not Tensor or not weight.dtype.is_floating_point or weight.dtype.itemsize < 2:
        return False
    if type(base).forward is nn.Linear.forward and "forward" not in base.__dict__:
        return True
    mark = x = torch.empty(1, weight.shape[1], dtype=weight.dtype, device=weight.device)

    class Answered(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.linear and not kwargs and len(args) == 3:
                return mark if (args[0] is x and args[1] is weight and args[2] is bias) else func(*args)
            return func(*args, **(kwargs or {}))

    mark = torch.empty(1, weight.shape[0], dtype=weight.dtype, device=weight.device)
    try:
        with torch.no_grad(), Answered():
            return base(x) is mark
    except Exception:  # it wants more than that
        return False
