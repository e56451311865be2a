"""Frozen layers that cast their weight at each call: the cast copy is made again in place of being kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .recompute import replaced_forward
from .regions import Region, inside_region


@contextmanager
def recast_weights(module: nn.Module) -> Iterator[None]:
    """Let no layer keep a copy of its weight in another dtype, or from another device, for the backward pass.

    A host keeps a model in fp8, or in part in main memory, and casts each layer's weight to the input's dtype and
    device when it is called. The gradient with regard to the input needs that copy, so that without this all weights
    of the model would be kept a second time, in full precision. Only the cast is repeated: a :class:`.regions.Region`
    ends before the layer computes.
    """
    with ExitStack() as stack:
        for layer in module.modules():
            weight = layer._parameters.get("weight")
            if isinstance(layer, nn.Linear | nn.Conv2d) and weight is not None and not weight.requires_grad:
                stack.enter_context(replaced_forward(layer, _recast(layer, layer.forward)))
        yield


def _recast(layer: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        weight = layer._parameters["weight"]
        as_it_is = weight is None or (weight.dtype == x.dtype and weight.device == x.device)
        if as_it_is or inside_region() or not torch.is_grad_enabled() or not x.requires_grad:
            return forward(x, *args, **kwargs)
        return Region()(forward, forward, (x, *args), kwargs)

    return run
