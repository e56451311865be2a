"""Leaving the host's inference mode, and weights that autograd accepts there.

The host runs nodes in ``torch.inference_mode()``, and often loads models in it. Such tensors cannot be saved for a
backward pass ("Inference tensors cannot be saved for backward"), for ever. But an ordinary tensor may lie on the same
storage: each parameter is given one for as long as we train, at no cost in memory, and the host's own parameter objects
are put back afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor, nn

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Outside of inference mode, gradients on. What was made inside it must be cloned or aliased to be trained with."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def ordinary(value: Any) -> Any:
    """A copy of the tensors in lists and dicts (a CONDITIONING), without their history. Outside of inference mode."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return [ordinary(item) for item in value]
    if isinstance(value, dict):
        return {name: ordinary(item) for name, item in value.items()}
    return value


def resident_clone(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone whose weights stay where they are loaded.

    Newer hosts can stream weights through the device during a forward pass ("dynamic VRAM"); what autograd keeps for
    the backward pass would be written over. They load such a model in the ordinary way when asked to.
    """
    streams = getattr(model, "is_dynamic", None)
    return model.clone(disable_dynamic=True) if streams is not None and streams() else model.clone()


def training_clone(model: comfy.model_patcher.ModelPatcher, precision: str) -> comfy.model_patcher.ModelPatcher:
    """A resident clone that computes in a precision of ``trainers.config.PRECISIONS``."""
    patcher = resident_clone(model)
    if precision in COMPUTE_DTYPES:
        patcher.set_model_compute_dtype(COMPUTE_DTYPES[precision])
    return patcher


def alias(tensor: Tensor) -> Tensor:
    """An ordinary tensor on the storage of ``tensor``, without its history. Call it outside of inference mode."""
    other = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    other.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())  # type: ignore[call-overload]
    return other


@contextmanager
def autograd_weights(model: nn.Module) -> Iterator[None]:
    """All parameters and buffers of ``model`` are ordinary, frozen tensors inside; the host's own objects afterwards.

    A weight that the host moved or replaced meanwhile (it may offload a model at any time) stays where the host put it.
    Subclasses of Tensor, such as the host's quantized weights, are left alone: they bring their own autograd.
    """
    replaced: list[tuple[dict[str, Tensor | None], str, Tensor, Tensor]] = []
    aliases: dict[int, Tensor] = {}
    try:
        for module in model.modules():
            for kept in (module._parameters, module._buffers):
                for name, tensor in list(kept.items()):
                    if tensor is None or type(tensor.data) is not Tensor:
                        continue
                    if id(tensor) not in aliases:  # a weight shared by two layers stays shared
                        ordinary = alias(tensor)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        aliases[id(tensor)] = nn.Parameter(ordinary, requires_grad=False) if is_parameter else ordinary
                    replaced.append((kept, name, tensor, aliases[id(tensor)]))
                    kept[name] = aliases[id(tensor)]
        yield
    finally:
        for kept, name, original, ordinary in replaced:
            if kept.get(name) is ordinary and ordinary.data_ptr() == original.data_ptr():
                kept[name] = original
