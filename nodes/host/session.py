"""A training run inside the host, from the node's inputs to its outputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from ...lora.files import write_safetensors
from ...lora.model import LoraTensors
from ...trainers.auto_rate import with_rate
from ...trainers.config import TrainingConfig
from ...trainers.curve import training_curves
from ...trainers.dataset import Example, PictureSet, TrainingSet, class_caption
from ...trainers.estimate import Estimate
from ...trainers.loop import train
from ...trainers.outcome import Callbacks, TrainingCancelled, TrainingResult
from ...trainers.subjects import prompts_of_each
from ..types import Prior, Samples
from .conditioning import check_length, size_conditions
from .denoiser import HostDenoiser, parameterisation
from .folders import new_run_folder, resumed_run, safe_name
from .interrupt import Interrupt, InterruptProcessingException
from .latents import encode_picture, latent_mask
from .live import Live
from .memory import PeakMemory, estimated, leave_device, loading_memory, raise_advice
from .metadata import describe
from .previews import Previewer, prepare, save_grid
from .prior import drawn_pictures
from .progress import Reporter
from .report import describe_run
from .text import LiveText, Texts, texts_of
from .weights import autograd_weights, ordinary_tensors, training_clone

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """The outputs of the training node."""

    model: comfy.model_patcher.ModelPatcher
    lora: LoraTensors
    curve: Tensor
    folder: Path
    clip: Any
    report: str = ""
    result: TrainingResult | None = None

    def outputs(self) -> tuple[Any, ...]:
        """In the order of the node's outputs."""
        return self.model, self.lora, self.curve, str(self.folder), self.clip, self.report


def train_lora(
    model: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    pictures: PictureSet,
    config: TrainingConfig,
    *,
    samples: Samples | None = None,
    prior: Prior | None = None,
    run_name: str = "",
    resume_from: str = "",
    node_id: str | None = None,
) -> Trained:
    """Train a LoRA for ``model``, which is exactly as it was afterwards, however this ends.

    With ``prior`` the model keeps more of what it knew; its weight goes into the configuration.

    Raises:
        InterruptProcessingException: the user cancelled; the run's folder has a checkpoint.
        TrainingDiverged, ValueError: see ``trainers.loop.train``.
        RuntimeError: out of memory, with advice.
    """
    if prior is not None:
        config = replace(config, prior_weight=prior.weight, prior_target=prior.target)
    parameterisation(model.get_model_object("model_sampling"))  # before any work: can it be trained at all?
    config = with_rate(config, model.model.diffusion_model)
    interrupt = Interrupt()
    reporter = Reporter(config.steps, node_id, interrupt)
    patcher = training_clone(model, config.precision)
    texts = texts_of(clip, patcher, config)
    folder, checkpoint = _run_folder(run_name, resume_from, pictures.trigger)
    estimate: Estimate | None = None
    try:
        reporter.text(f"encoding {len(pictures.pictures)} pictures and captions")
        data = encode(patcher, clip, texts, vae, pictures, config.seed, keep=config.prior_weight > 0)
        if prior is not None and prior.weight > 0:
            reporter.text("preparing what is to be kept")
            data = replace(data, prior=_prior(patcher, clip, texts, vae, prior, pictures, config, reporter))
        texts.keep(())
        previewer = prepare(_of_each(samples, pictures), texts, patcher, vae) if samples else None
        leave_device(vae, *(() if texts.patchers else (clip,)))
        reporter.text("loading the model")
        needed, estimate = loading_memory(patcher, data, config)
        comfy.model_management.load_models_gpu([patcher, *texts.patchers], needed)
        with ordinary_tensors(), autograd_weights(patcher.model), texts.training():
            peak = PeakMemory(patcher.load_device)
            denoiser = HostDenoiser(patcher, interrupt, texts if isinstance(texts, LiveText) else None)
            estimate = estimate or estimated(denoiser, data, config)
            if estimate is not None:
                log.info("Likeness: %s", estimate.line(config))
                reporter.text(estimate.line(config))
            result = _train(denoiser, data, config, folder, checkpoint, previewer, reporter, interrupt)
            report = describe_run(result, estimate, peak.line())
    except TrainingCancelled as cancelled:
        log.info("Likeness: %s Its checkpoint is in %s.", cancelled, folder)
        raise InterruptProcessingException() from None
    except Exception as error:
        raise_advice(error, config, estimate)
        raise
    with ordinary_tensors():
        lora = LoraTensors(result.tensors, describe(model, pictures, result))
        write_safetensors(folder / f"{folder.name}.safetensors", lora, lora.metadata)
        curve = training_curves(result.losses, result.records)
    if interrupt.cancelled():  # during the last step: all is saved, but nothing else is to run
        raise InterruptProcessingException()
    reporter.text(f"trained {result.steps_done} steps, loss {result.losses[-1]:.4f}" if result.losses else "trained")
    patched, patched_clip = with_lora(model, clip, lora)
    return Trained(patched, lora, curve, folder, patched_clip, report, result)


def with_lora(
    model: comfy.model_patcher.ModelPatcher, clip: Any, lora: Mapping[str, Tensor]
) -> tuple[comfy.model_patcher.ModelPatcher, Any]:
    """(model, CLIP) with a LoRA at strength 1, by the host's own loader; CLIP as it was where the LoRA has no text."""
    if not any(name.startswith("text_encoders.") for name in lora):
        return comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)[0], clip
    patched, patched_clip = comfy.sd.load_lora_for_models(model, clip, dict(lora), 1.0, 1.0)
    return patched, patched_clip


def _of_each(samples: Samples, pictures: PictureSet) -> Samples:
    """The prompts with trigger words filled in, and asked of each subject."""
    prompts, columns = prompts_of_each(samples.prompts, pictures)
    return replace(samples, prompts=prompts, columns=columns)


def _run_folder(run_name: str, resume_from: str, trigger: str) -> tuple[Path, Path | None]:
    """(folder to write to, what to resume from). A resumed run goes on in its own folder, unless it is given a name."""
    if not resume_from.strip():
        return new_run_folder(run_name, trigger), None
    folder, checkpoint = resumed_run(resume_from)
    if run_name.strip() and safe_name(run_name) != folder.name:
        folder = new_run_folder(run_name, trigger)
    return folder, checkpoint


def encode(
    patcher: comfy.model_patcher.ModelPatcher,
    clip: Any,
    texts: Texts,
    vae: Any,
    pictures: PictureSet,
    seed: int,
    *,
    keep: bool = False,
) -> TrainingSet:
    """Everything that VAE and text encoder are needed for, once. They may be offloaded afterwards.

    With ``keep``, the captions without the trigger too, for what the model is to keep.
    """
    examples = _examples(patcher, clip, texts, vae, pictures, seed, keep)
    return TrainingSet(examples, examples[0].empty, balanced=pictures.balanced)


def _examples(
    patcher: comfy.model_patcher.ModelPatcher,
    clip: Any,
    texts: Texts,
    vae: Any,
    pictures: PictureSet,
    seed: int,
    keep: bool = False,
) -> tuple[Example, ...]:
    """The pictures of all members, encoded."""
    for picture in pictures.pictures:
        for caption in dict.fromkeys((picture.caption, *picture.variants)):
            check_length(clip, caption, picture.source)
    examples = []
    with torch.random.fork_rng():  # the host's VAE draws from torch's global generator
        torch.manual_seed(seed)
        for subject, member in enumerate(pictures.members()):
            for picture in member.pictures:
                comfy.model_management.throw_exception_if_processing_interrupted()
                latents = encode_picture(vae, patcher, picture, mirrored=False)
                flipped = encode_picture(vae, patcher, picture, mirrored=True) if member.flip else None
                sizes = size_conditions(picture)
                cond, empty = (texts.cond(text, latents, sizes) for text in (picture.caption, ""))
                variants = tuple(texts.cond(caption, latents, sizes) for caption in picture.variants)
                kept = class_caption(picture.caption, member.trigger, member.class_noun) if keep else None
                kept_cond = None if kept is None else texts.cond(kept, latents, sizes)
                mask = latent_mask(picture, latents)
                with ordinary_tensors():
                    examples.append(
                        Example(
                            latents=latents[0].clone(),
                            flipped=None if flipped is None else flipped[0].clone(),
                            cond=cond,
                            mask=None if mask is None else mask.clone(),
                            repeats=member.repeats,
                            prior_cond=kept_cond,
                            subject=subject,
                            variants=variants,
                            empty=empty,
                        )
                    )
    return tuple(examples)


def _prior(
    patcher: comfy.model_patcher.ModelPatcher,
    clip: Any,
    texts: Texts,
    vae: Any,
    prior: Prior,
    pictures: PictureSet,
    config: TrainingConfig,
    reporter: Reporter,
) -> tuple[Example, ...]:
    """Class pictures: of the user's, or the model's own; none where the training pictures serve."""
    if prior.dataset is not None:
        return _examples(patcher, clip, texts, vae, prior.dataset, config.seed)
    if prior.prompts:
        return drawn_pictures(
            patcher, texts, vae, prior, pictures, reporter.text, lambda sheet: reporter.show(sheet, 0, config.steps)
        )
    return ()


def _train(
    denoiser: HostDenoiser,
    data: TrainingSet,
    config: TrainingConfig,
    folder: Path,
    checkpoint: Path | None,
    previewer: Previewer | None,
    reporter: Reporter,
    interrupt: Interrupt,
) -> TrainingResult:
    """The loop, with the host's callbacks."""
    live = Live(reporter, config.steps)

    def sample(step: int) -> None:
        if previewer is None:
            return
        with interrupt.held():
            grid = previewer.draw()
            save_grid(grid, folder, step)
            live.show(grid, step)

    callbacks = Callbacks(progress=reporter.step, cancelled=interrupt.cancelled, sample=sample, record=live.record)
    return train(denoiser, data, config, folder, callbacks, checkpoint)
