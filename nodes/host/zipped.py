"""A ZipLoRA run inside the host, from the node's inputs to its outputs."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
from torch import Tensor

from ...lora.columns import low_rank_layers
from ...lora.delta import LowRankDelta
from ...lora.files import write_safetensors
from ...lora.markdown import markdown_table
from ...lora.metadata import model_hash
from ...lora.model import LoraTensors, metadata_of
from ...lora.resolve import MODEL, TEXT_ENCODERS, layer_name
from ...merging.align import Source
from ...merging.column_plot import column_plot
from ...merging.columns import columns_table, merge_columns
from ...trainers.config import TrainingConfig
from ...trainers.dataset import Example, PictureSet, TrainingSet
from ...trainers.outcome import Callbacks
from ...trainers.zip_lora import Zipped, zip_loras
from ...trainers.zip_plot import zip_curves
from ...trainers.zip_questions import Concept, TwoConds
from ...trainers.zip_state import FILE, ZipState, load_state, save_state
from ..merge_sources import merge_sources
from ..types import GENERATED, Prior
from .denoiser import HostDenoiser, parameterisation
from .folders import new_run_folder, resumed_run
from .interrupt import Interrupt, InterruptProcessingException
from .latents import zero_latents
from .layers import model_layers
from .memory import PeakMemory, leave_device, raise_advice, training_memory
from .prior import Wanted, draw_latents
from .progress import Reporter
from .session import encode, with_lora
from .text import CachedText
from .weights import autograd_weights, ordinary_tensors, training_clone

log = logging.getLogger(__name__)

NOISE, DRAWN = WITHOUT_PICTURES = ("noise", "drawn pictures")


@dataclass(frozen=True)
class Asked:
    """A LoRA to merge.

    Attributes:
        socket: where it came from.
        lora: the LORA_MODEL.
        prompts: with its trigger word; used where there are no pictures.
        pictures: those it was trained on, or None.
    """

    socket: str
    lora: Mapping[str, Tensor]
    prompts: tuple[str, ...]
    pictures: PictureSet | None = None


@dataclass(frozen=True)
class Drawing:
    """What stands in for pictures where there are none.

    Attributes:
        mode: one of :data:`WITHOUT_PICTURES`.
        width, height: in pixels.
        pictures: so many each LoRA draws.
        steps, cfg: of the sampler.
    """

    mode: str = NOISE
    width: int = 512
    height: int = 512
    pictures: int = 4
    steps: int = 20
    cfg: float = 5.0


@dataclass(frozen=True)
class ZipRun:
    """The outputs of the node."""

    model: comfy.model_patcher.ModelPatcher
    lora: LoraTensors
    coefficients: Tensor
    curves: Tensor
    report: str
    folder: Path
    clip: Any
    result: Zipped


@dataclass
class _PairedTexts:
    """Captions as the merged text encoders make them, beside those of one LoRA alone. A ``text.Texts``."""

    merged: CachedText
    teacher: CachedText
    patchers: list[comfy.model_patcher.ModelPatcher] = field(default_factory=list)

    def conditioning(self, text: str) -> Any:
        return self.teacher.conditioning(text)

    def cond(self, text: str, latents: Tensor, sizes: Mapping[str, int]) -> TwoConds:
        return TwoConds(self.merged.cond(text, latents, sizes), self.teacher.cond(text, latents, sizes))


def learn_zip(
    model: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    asked: Sequence[Asked],
    config: TrainingConfig,
    overlap_weight: float,
    drawing: Drawing,
    *,
    run_name: str = "",
    resume_from: str = "",
    node_id: str | None = None,
) -> ZipRun:
    """Merge LoRAs with learnt coefficients. ``model`` is exactly as it was afterwards, however this ends.

    Raises:
        InterruptProcessingException: the user cancelled; the run's folder has the LoRA as learnt so far, and its state.
        ValueError: LoRAs, pictures or prompts do not fit; see also ``trainers.zip_lora.zip_loras``.
        RuntimeError: out of memory, with advice.
    """
    parameterisation(model.get_model_object("model_sampling"))  # before any work: can it be trained at all?
    sources = merge_sources([(each.socket, each.lora) for each in asked], "", "1", model_layers(model))
    layers = [_layers(source) for source in sources]
    for each, source in zip(asked, sources, strict=True):
        if each.pictures is None and not each.prompts:
            raise ValueError(
                f"{source.name} has neither pictures nor a prompt: connect its dataset, or write a prompt with its "
                "trigger word."
            )
    about = _about(sources, config, overlap_weight)
    folder, start = _folder(run_name, resume_from, sources, about)
    interrupt = Interrupt()
    reporter = Reporter(config.steps, node_id, interrupt)
    patcher = training_clone(model, config.precision)
    try:
        concepts = _concepts(model, patcher, clip, vae, asked, sources, layers, config, drawing, reporter)
        leave_device(vae, clip)
        ranks = [max(delta.rank for delta in each.values()) for each in layers if each]
        latents = [example.latents for concept in concepts for example in concept.data.examples]
        largest = max(latents, key=Tensor.numel).unsqueeze(0)
        held = replace(config, rank=max(1, math.ceil(sum(ranks) / 4)))  # 4 bytes a number, where training counts 16
        reporter.text("loading the model")
        comfy.model_management.load_models_gpu([patcher], training_memory(patcher, held, largest))
        with ordinary_tensors(), autograd_weights(patcher.model):
            peak = PeakMemory(patcher.load_device)
            callbacks = Callbacks(progress=reporter.step, cancelled=interrupt.cancelled)
            found = zip_loras(
                HostDenoiser(patcher, interrupt),
                concepts,
                config,
                overlap_weight,
                callbacks,
                start,
                lambda state: save_state(folder / "checkpoints" / FILE, state, about),
            )
            memory = peak.line()
    except Exception as error:
        raise_advice(error, config)
        raise
    names = [source.name for source in sources]
    with ordinary_tensors():
        save_state(folder / "checkpoints" / FILE, found.state, about)
        done = {**about, "steps": found.steps_done, "learning_rate": config.learning_rate}
        lora, _ = merge_columns(sources, found.columns, "ZipLoRA", {k: v for k, v in done.items() if k != "loras"})
        write_safetensors(folder / f"{folder.name}.safetensors", lora, lora.metadata)
        if found.steps_done < config.steps or interrupt.cancelled():
            log.info("Likeness: cancelled after %d steps. What was learnt is in %s.", found.steps_done, folder)
            raise InterruptProcessingException()
        coefficients, curves = column_plot(found.columns, names, "ZipLoRA"), zip_curves(found, names)
    report = _report(found, names, config, overlap_weight, memory)
    reporter.text(f"learnt in {found.steps_done} steps")
    patched, patched_clip = with_lora(model, clip, lora)
    return ZipRun(patched, lora, coefficients, curves, report, folder, patched_clip, found)


def _layers(source: Source) -> dict[str, LowRankDelta]:
    """What a LoRA changes of the diffusion model."""
    try:
        found = {name: delta for name, delta in low_rank_layers(source.tensors).items() if name.startswith(MODEL)}
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from error
    return found


def _about(sources: Sequence[Source], config: TrainingConfig, overlap_weight: float) -> dict[str, Any]:
    """What a run must have in common with one that it goes on from."""
    hashes = [metadata_of(each.tensors).get("sshs_model_hash") or model_hash(each.tensors) for each in sources]
    return {
        "loras": hashes,
        "seed": config.seed,
        "targets": config.targets,
        "optimizer": config.optimizer,
        "overlap_weight": overlap_weight,
    }


def _folder(
    run_name: str, resume_from: str, sources: Sequence[Source], about: Mapping[str, Any]
) -> tuple[Path, ZipState | None]:
    if not resume_from.strip():
        folder = new_run_folder(run_name, f"zip_{'_'.join(source.name for source in sources)}")
        (folder / "checkpoints").mkdir()
        return folder, None
    folder, _ = resumed_run(resume_from)
    return folder, load_state(folder / "checkpoints" / FILE, about)


def _concepts(
    model: comfy.model_patcher.ModelPatcher,
    patcher: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    asked: Sequence[Asked],
    sources: Sequence[Source],
    layers: Sequence[Mapping[str, LowRankDelta]],
    config: TrainingConfig,
    drawing: Drawing,
    reporter: Reporter,
) -> list[Concept]:
    """Everything that VAE and text encoder are needed for, once."""
    of_text = [_of_text_encoders(source.tensors) for source in sources]
    merged_clip = clip
    for tensors in of_text:
        merged_clip = _with_text_lora(merged_clip, tensors)
    merged = CachedText(merged_clip, patcher)
    concepts = []
    for number, (each, source) in enumerate(zip(asked, sources, strict=True)):
        texts: Any = merged
        own_clip = clip
        if any(of_text):
            own_clip = _with_text_lora(clip, of_text[number])
            texts = _PairedTexts(merged, CachedText(own_clip, patcher))
        if each.pictures is not None:
            reporter.text(f"encoding {len(each.pictures.pictures)} pictures of {source.name}")
            data = encode(patcher, own_clip, texts, vae, each.pictures, config.seed)
        else:
            with_it = with_lora(model, None, {**source.tensors})[0] if drawing.mode == DRAWN else None
            data = from_prompts(patcher, with_it, vae, texts, each.prompts, config, drawing, number, reporter)
        imagined = each.pictures is None and drawing.mode == NOISE
        concepts.append(Concept(source.name, layers[number], data, imagined))
    return concepts


def from_prompts(
    patcher: comfy.model_patcher.ModelPatcher,
    teacher: comfy.model_patcher.ModelPatcher | None,
    vae: Any,
    texts: Any,
    prompts: Sequence[str],
    config: TrainingConfig,
    drawing: Drawing,
    number: int,
    reporter: Reporter,
) -> TrainingSet:
    """A LoRA's prompts, with pictures that it draws itself, or with none."""
    width, height = drawing.width, drawing.height
    crop = {"crop_w": 0, "crop_h": 0}
    sizes = {"width": width, "height": height, "target_width": width, "target_height": height, **crop}
    blank = zero_latents(vae, patcher, width, height)
    wanted = [Wanted(prompts[index % len(prompts)], (height, width)) for index in range(drawing.pictures)]
    if teacher is None:
        wanted = [Wanted(prompt, (height, width)) for prompt in prompts]
        latents = [blank[0]] * len(wanted)
    else:
        how = Prior(
            mode=GENERATED,
            weight=1.0,
            prompts=tuple(prompts),
            pictures=len(wanted),
            seed=config.seed + number,
            steps=drawing.steps,
            cfg=drawing.cfg,
            sampler_name="euler",
            scheduler="normal",
            dataset=None,
        )
        conditionings = {each.prompt: texts.conditioning(each.prompt) for each in wanted}
        latents = draw_latents(teacher, vae, how, wanted, conditionings, texts.conditioning(""), reporter.text)
    examples = []
    for each, one in zip(wanted, latents, strict=True):
        cond, empty = (texts.cond(text, one.unsqueeze(0), sizes) for text in (each.prompt, ""))
        with ordinary_tensors():
            examples.append(Example(one.detach().clone().float(), None, cond, None, empty=empty))
    return TrainingSet(tuple(examples), examples[0].empty)


def _of_text_encoders(lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in lora.items() if layer_name(key).startswith(TEXT_ENCODERS)}


def _with_text_lora(clip: Any, tensors: Mapping[str, Tensor]) -> Any:
    return comfy.sd.load_lora_for_models(None, clip, dict(tensors), 0.0, 1.0)[1] if tensors else clip


def _report(found: Zipped, names: Sequence[str], config: TrainingConfig, overlap_weight: float, memory: str) -> str:
    """What was learnt, in markdown."""
    rows = []
    for name, fit in zip(names, found.fits, strict=True):
        base = max(fit.base, 1e-30)
        rows.append([name, f"{fit.base:.4g}", f"{fit.plain / base:.3f}", f"{fit.merged / base:.3f}"])
    head = ["LoRA", "what it does to the model", "plain sum", "ZipLoRA"]
    rate = f"{config.learning_rate:g}"
    lines = [
        f"# ZipLoRA of {len(names)} LoRAs",
        f"{found.steps_done} steps at a learning rate of {rate}, λ {overlap_weight:g}, seed {config.seed}; "
        f"{found.seconds:.1f} seconds, {found.seconds / max(1, found.steps_done):.3f} a step.",
        "How far the merge is from each LoRA alone, as a share of what that LoRA does (0: the same, 1: as if it were "
        "not there), on noise that was not trained on:",
        markdown_table(head, rows),
        "## Coefficients",
        columns_table(found.columns, names),
        "## Memory",
        f"{found.coefficients:,} coefficients ({16 * found.coefficients / 2**20:.1f} MiB with gradients and optimizer) "
        f"beside {found.factor_bytes / 2**20:.1f} MiB of the LoRAs' own factors; no dense ΔW. {memory}.",
        *found.notes,
    ]
    return "\n\n".join(lines) + "\n"
