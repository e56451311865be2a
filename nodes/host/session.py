"""A training run inside the host, from the node's inputs to its outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from ...lora.files import write_safetensors
from ...lora.keys import from_deltas
from ...lora.model import LoraTensors
from ...trainers.config import TrainingConfig
from ...trainers.curve import loss_curve
from ...trainers.dataset import Example, PictureSet, TrainingSet
from ...trainers.loop import Callbacks, TrainingCancelled, TrainingResult, train
from ..types import Samples
from .conditioning import check_length, detach_cond, encode_text, make_cond, size_conditions
from .denoiser import HostDenoiser, parameterisation
from .folders import new_run_folder, resumed_run, safe_name
from .interrupt import Interrupt, InterruptProcessingException
from .latents import encode_picture, latent_mask
from .memory import advice, is_out_of_memory, training_memory
from .metadata import describe
from .previews import Previewer, ordinary_previewer, prepare, save_grid
from .progress import Reporter
from .weights import autograd_weights, ordinary_tensors

log = logging.getLogger(__name__)

COMPUTE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Trained:
    """The outputs of the training node."""

    model: comfy.model_patcher.ModelPatcher
    lora: LoraTensors
    curve: Tensor
    folder: Path


def train_lora(
    model: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    pictures: PictureSet,
    config: TrainingConfig,
    *,
    samples: Samples | None = None,
    run_name: str = "",
    resume_from: str = "",
    node_id: str | None = None,
) -> Trained:
    """Train a LoRA for ``model``, which is exactly as it was afterwards, however this ends.

    Raises:
        InterruptProcessingException: the user cancelled; the run's folder has a checkpoint.
        TrainingDiverged, ValueError: see ``trainers.loop.train``.
        RuntimeError: out of memory, with advice.
    """
    parameterisation(model.get_model_object("model_sampling"))  # before any work: can it be trained at all?
    interrupt = Interrupt()
    reporter = Reporter(config.steps, node_id, interrupt)
    folder, checkpoint = _run_folder(run_name, resume_from, pictures.trigger)
    patcher = resident_clone(model)
    if config.precision in COMPUTE_DTYPES:
        patcher.set_model_compute_dtype(COMPUTE_DTYPES[config.precision])
    try:
        reporter.text(f"encoding {len(pictures.pictures)} pictures and captions")
        data = _encode(patcher, clip, vae, pictures, config.seed)
        previewer = prepare(samples, clip, patcher, vae) if samples else None
        largest = max((example.latents for example in data.examples), key=Tensor.numel).unsqueeze(0)
        reporter.text("loading the model")
        comfy.model_management.load_models_gpu([patcher], training_memory(patcher, config, largest))
        with ordinary_tensors(), autograd_weights(patcher.model):
            result = _train(patcher, data, config, folder, checkpoint, previewer, reporter, interrupt)
    except TrainingCancelled as cancelled:
        log.info("Likeness: %s Its checkpoint is in %s.", cancelled, folder)
        raise InterruptProcessingException() from None
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        comfy.model_management.soft_empty_cache()
        raise RuntimeError(advice(config)) from error
    with ordinary_tensors():
        lora = LoraTensors(from_deltas(result.deltas), describe(model, pictures, result))
        write_safetensors(folder / f"{folder.name}.safetensors", lora, lora.metadata)
        curve = loss_curve(result.losses)
    if interrupt.cancelled():  # during the last step: all is saved, but nothing else is to run
        raise InterruptProcessingException()
    reporter.text(f"trained {result.steps_done} steps, loss {result.losses[-1]:.4f}" if result.losses else "trained")
    return Trained(with_lora(model, lora), lora, curve, folder)


def with_lora(model: comfy.model_patcher.ModelPatcher, lora: Mapping[str, Tensor]) -> comfy.model_patcher.ModelPatcher:
    """The model with a LoRA at strength 1, by the host's own loader."""
    patched, _ = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)
    return patched


def resident_clone(model: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone whose weights stay where they are loaded.

    Newer hosts can stream weights through the device during a forward pass ("dynamic VRAM"); what autograd keeps for
    the backward pass would be written over. They load such a model in the ordinary way when asked to.
    """
    streams = getattr(model, "is_dynamic", None)
    return model.clone(disable_dynamic=True) if streams is not None and streams() else model.clone()


def _run_folder(run_name: str, resume_from: str, trigger: str) -> tuple[Path, Path | None]:
    """(folder to write to, what to resume from). A resumed run goes on in its own folder, unless it is given a name."""
    if not resume_from.strip():
        return new_run_folder(run_name, trigger), None
    folder, checkpoint = resumed_run(resume_from)
    if run_name.strip() and safe_name(run_name) != folder.name:
        folder = new_run_folder(run_name, trigger)
    return folder, checkpoint


def _encode(
    patcher: comfy.model_patcher.ModelPatcher, clip: Any, vae: Any, pictures: PictureSet, seed: int
) -> TrainingSet:
    """Everything that VAE and text encoder are needed for, once. They may be offloaded afterwards."""
    for picture in pictures.pictures:
        check_length(clip, picture.caption, picture.source)
    conditionings = {picture.caption: encode_text(clip, picture.caption) for picture in pictures.pictures}
    nothing = encode_text(clip, "")
    examples = []
    with torch.random.fork_rng():  # the host's VAE draws from torch's global generator
        torch.manual_seed(seed)
        for picture in pictures.pictures:
            comfy.model_management.throw_exception_if_processing_interrupted()
            latents = encode_picture(vae, patcher, picture, mirrored=False)
            flipped = encode_picture(vae, patcher, picture, mirrored=True) if pictures.flip else None
            cond = make_cond(patcher, conditionings[picture.caption], latents, size_conditions(picture))
            mask = latent_mask(picture, latents)
            examples.append((latents, flipped, cond, mask))
    first = pictures.pictures[0]
    empty = make_cond(patcher, nothing, examples[0][0], size_conditions(first))
    device = patcher.load_device
    with ordinary_tensors():
        return TrainingSet(
            examples=tuple(
                Example(
                    latents=latents[0].clone(),
                    flipped=None if flipped is None else flipped[0].clone(),
                    cond=detach_cond(cond, device),
                    mask=None if mask is None else mask.clone(),
                    repeats=pictures.repeats,
                )
                for latents, flipped, cond, mask in examples
            ),
            empty=detach_cond(empty, device),
        )


def _train(
    patcher: comfy.model_patcher.ModelPatcher,
    data: TrainingSet,
    config: TrainingConfig,
    folder: Path,
    checkpoint: Path | None,
    previewer: Previewer | None,
    reporter: Reporter,
    interrupt: Interrupt,
) -> TrainingResult:
    """The loop, with the host's callbacks."""
    drawing = None if previewer is None else ordinary_previewer(previewer)

    def sample(step: int) -> None:
        if drawing is None:
            return
        with interrupt.held():
            grid = drawing.draw()
            save_grid(grid, folder, step)
            reporter.show(grid, step, config.steps)

    callbacks = Callbacks(progress=reporter.step, cancelled=interrupt.cancelled, sample=sample)
    denoiser = HostDenoiser(patcher, interrupt)
    return train(denoiser, data, config, folder, callbacks, checkpoint)
