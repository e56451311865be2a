"""How much memory a training run will want of the device, and what to say when it was not there."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher
from torch import Tensor

from ...trainers.config import TrainingConfig
from ...trainers.targets import PREFIX, adaptable_layers, matched_layers

KEPT = 25.0
"""Activations kept for a backward pass, in multiples of the host's own estimate for a forward pass (SD1.5, SDXL)."""

RECOMPUTED = 6.0
"""The same with gradient checkpointing: the inputs of all blocks, and the activations of one."""

BYTES_A_PARAMETER = 16
"""fp32 adapter, its gradient, and AdamW's two moments."""

OutOfMemory: type[BaseException] = comfy.model_management.OOM_EXCEPTION


def training_memory(patcher: comfy.model_patcher.ModelPatcher, config: TrainingConfig, latents: Tensor) -> int:
    """Bytes beside the weights, a sane estimate: what the host keeps free when it loads the model.

    Args:
        latents: (1, C, …) of the largest picture.
    """
    together = 2 if config.prior_weight > 0 else 1  # what is to be kept goes through with what is learnt
    batch = [together * config.batch_size, *latents.shape[1:]]
    forward = float(patcher.model.memory_required(batch))
    layers = adaptable_layers({PREFIX: patcher.model.diffusion_model})
    adapter = 0
    for name in matched_layers({PREFIX: patcher.model.diffusion_model}, config.targets, config.target_pattern):
        shape: Any = layers[name].weight.shape
        adapter += config.rank * (shape[0] + shape[1:].numel())
    return int(forward * (RECOMPUTED if config.gradient_checkpointing else KEPT) + adapter * BYTES_A_PARAMETER)


def is_out_of_memory(error: BaseException) -> bool:
    """Did the device run out of memory? Newer hosts know more ways to tell."""
    newer = getattr(comfy.model_management, "is_oom", None)
    if newer is not None:
        return bool(newer(error))
    if OutOfMemory is Exception:  # a torch without a class for it
        return "out of memory" in str(error).lower()
    return isinstance(error, OutOfMemory)


def advice(config: TrainingConfig) -> str:
    """What to change, the cheapest first."""
    steps = []
    if not config.gradient_checkpointing:
        steps.append("turn on gradient_checkpointing in Training Options")
    if config.batch_size > 1:
        steps.append(
            f"set batch_size to 1 and gradient_accumulation to {config.batch_size * config.gradient_accumulation}"
        )
    if config.targets != "attention":
        steps.append("choose the attention targets")
    steps += ["lower the dataset's resolution", "load the base model in fp8"]
    return "Training ran out of memory; the model is as it was, and the last checkpoint is kept. " + (
        f"In this order: {', then '.join(steps)}."
    )
