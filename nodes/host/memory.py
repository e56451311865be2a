"""How much memory a training run will want of the device, and what to say when it was not there."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...trainers.config import TrainingConfig
from ...trainers.dataset import TrainingSet
from ...trainers.estimate import GIB, Estimate, rehearse
from ...trainers.modules import trained_modules
from ...trainers.targets import PREFIX, adaptable_layers, matched_layers
from .conditioning import detach_cond
from .denoiser import HostDenoiser
from .weights import autograd_weights, ordinary_tensors

KEPT = 25.0
"""Activations kept for a backward pass, in multiples of the host's own estimate for a forward pass (SD1.5, SDXL)."""

RECOMPUTED = 6.0
"""The same with gradient checkpointing: the inputs of all blocks, and the activations of one."""

BYTES_A_PARAMETER = 16
"""fp32 adapter, its gradient, and AdamW's two moments."""

SLACK, RESERVE = 1.1, 0.5 * GIB
"""On what was rehearsed: what operations need while they run, and what an allocator wastes."""

ALL = 1e30
"""More bytes than there are: what the host asks for to unload everything."""

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


def loading_memory(
    patcher: comfy.model_patcher.ModelPatcher, data: TrainingSet, config: TrainingConfig
) -> tuple[int, Estimate | None]:
    """Bytes to keep free when the host loads the model, rehearsed where its weights lie before that.

    The host leaves in main memory what there is no room for beside them, and fetches it layer by layer: too much kept
    free makes a step slow, too little ends it. Where the model cannot be rehearsed yet (it is on two devices, will
    compute in another precision, or its text encoders learn), :func:`training_memory`.

    Returns:
        The bytes; and the estimate, where it was made on the device that will compute.
    """
    largest = max(data.examples, key=lambda example: example.latents.numel())
    devices = {parameter.device for parameter in patcher.model.diffusion_model.parameters()}
    estimate = None
    if (
        len(devices) == 1
        and not config.text_encoder_learning_rate
        and not getattr(patcher, "force_cast_weights", False)
    ):
        (device,) = devices
        with ordinary_tensors(), autograd_weights(patcher.model):
            denoiser = HostDenoiser(patcher)
            denoiser.device = device
            there = replace(largest, cond=detach_cond(largest.cond, device))
            estimate = estimated(denoiser, replace(data, examples=(there,)), config)
    if estimate is None:
        return training_memory(patcher, config, largest.latents.unsqueeze(0)), None
    beside = estimate.extra(config) + (2 * max(estimate.blocks, default=0) if config.offload_blocks else 0)
    same = device.type == patcher.load_device.type
    return int(SLACK * beside + RESERVE), estimate if same else None


def leave_device(*finished: Any) -> None:
    """Move models (CLIP, VAE) that have done their work off the device; the host brings them back when they are used.

    It would make room by itself, but only for what it thinks a step takes. On a CPU there is nowhere to go.
    """
    management = comfy.model_management
    patchers = [each.patcher for each in finished if hasattr(each, "patcher")]  # other packs' may have none
    patchers = [patcher for patcher in patchers if not management.is_device_cpu(patcher.load_device)]
    kept = [
        loaded
        for loaded in management.current_loaded_models
        if not any(patcher.is_clone(loaded.model) for patcher in patchers)
    ]
    for device in {patcher.load_device for patcher in patchers}:
        management.free_memory(ALL, device, keep_loaded=kept)


def is_out_of_memory(error: BaseException) -> bool:
    """Did the device run out of memory? Newer hosts know more ways to tell."""
    newer = getattr(comfy.model_management, "is_oom", None)
    if newer is not None:
        return bool(newer(error))
    if OutOfMemory is Exception:  # a torch without a class for it
        return "out of memory" in str(error).lower()
    return isinstance(error, OutOfMemory)


def raise_advice(error: BaseException, config: TrainingConfig, estimate: Estimate | None = None) -> None:
    """Raise RuntimeError with what to change where the device ran out of memory; anything else is the caller's."""
    if is_out_of_memory(error):
        comfy.model_management.soft_empty_cache()
        raise RuntimeError(advice(config, estimate)) from error


def estimated(denoiser: HostDenoiser, data: TrainingSet, config: TrainingConfig) -> Estimate | None:
    """What the largest batch of a run will take, or None where the model cannot be rehearsed."""
    trained = trained_modules(denoiser, config)
    layers = adaptable_layers(trained.modules)
    matched = {name: layers[name] for name in trained.layers}
    largest = max(data.examples, key=lambda example: example.latents.numel())
    count = config.batch_size * (2 if config.prior_weight > 0 else 1)
    conds = [largest.cond] * count
    if denoiser.text is not None:  # each caption of a batch goes through the encoders
        conds = [replace(largest.cond, text=example.cond.text) for example in islice(cycle(data.examples), count)]
        with torch.no_grad():  # encoders that do not learn keep what they made, and it must have numbers
            denoiser.text.now(conds)

    def forward() -> Tensor:
        noisy = torch.empty(count, *largest.latents.shape, device=denoiser.device)
        sigma = torch.full((count,), 0.5, device=denoiser.device)
        return denoiser.denoise(noisy, sigma, conds)

    others = [module for module in trained.modules.values() if module is not denoiser.module]
    return rehearse(denoiser.module, matched, forward, config, others)


class PeakMemory:
    """The most that a run took of the device's memory; on a CPU, by how much the process grew.

    Linux gives the CPU's figure; elsewhere it is unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # begins a new high-water mark
        self.before = self._status("VmRSS")

    def line(self) -> str:
        """In words."""
        if self.device.type == "cuda":
            return f"peak memory {torch.cuda.max_memory_allocated(self.device) / GIB:.2f} GiB"
        peak = self._status("VmHWM")
        if peak is None or self.before is None:
            return "peak memory unknown on this system"
        return f"peak memory {max(0, peak - self.before) / GIB:.2f} GiB beside the loaded model"

    @staticmethod
    def _status(field: str) -> int | None:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)


def advice(config: TrainingConfig, estimate: Estimate | None = None) -> str:
    """What to change: the greatest saving first where it could be estimated, else the cheapest."""
    begin = "Training ran out of memory; the model is as it was, and the last checkpoint is kept. "
    if estimate is not None and (found := estimate.advice(config)):
        options = "; ".join(f"{what} (about {less / GIB:.2f} GiB less)" for what, less in found)
        return f"{begin}It was to take {estimate.total(config) / GIB:.2f} GiB. What saves most comes first: {options}."
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
    return f"{begin}In this order: {', then '.join(steps)}."
