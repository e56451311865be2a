"""Teaching a LoRA.rar hypernetwork inside the host, from two folders of LoRAs to a file."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import folder_paths
from torch import Tensor

from ...lora.columns import low_rank_layers
from ...lora.delta import LowRankDelta
from ...lora.load import load_lora
from ...lora.markdown import markdown_table
from ...lora.resolve import MODEL
from ...merging.lora_rar import HyperNetwork, is_asked, save_network
from ...trainers.config import TrainingConfig
from ...trainers.curve import loss_curve
from ...trainers.dataset import load_folder
from ...trainers.lora_rar import RarTrained, Taught, train_rar
from ...trainers.outcome import Callbacks
from ...trainers.zip_state import FILE, load_state, save_state
from .denoiser import HostDenoiser, parameterisation
from .folders import model_file, new_run_folder, resumed_run
from .interrupt import Interrupt, InterruptProcessingException
from .layers import model_layers
from .memory import leave_device, raise_advice, training_memory
from .progress import Reporter
from .session import encode
from .text import CachedText
from .weights import autograd_weights, ordinary_tensors, training_clone
from .zipped import Drawing, from_prompts

log = logging.getLogger(__name__)

HYPERNETWORKS = "hypernetworks"


@dataclass(frozen=True)
class Library:
    """What to learn from.

    Attributes:
        subjects, styles: names of LoRA files below models/loras.
        held_out: so many of each, the last ones, are measured and not learnt from.
    """

    subjects: tuple[str, ...]
    styles: tuple[str, ...]
    held_out: int


@dataclass(frozen=True)
class RarRun:
    """The outputs of the node."""

    network: HyperNetwork
    path: Path
    curve: Tensor
    report: str
    folder: Path


def learn_rar(
    model: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    library: Library,
    config: TrainingConfig,
    cosine_weight: float,
    size: tuple[int, int],
    filename: str,
    *,
    run_name: str = "",
    resume_from: str = "",
    node_id: str | None = None,
) -> RarRun:
    """Teach a hypernetwork. ``model`` is exactly as it was afterwards, however this ends.

    Args:
        size: (width, height) in pixels where a LoRA comes without pictures.
        filename: below models/hypernetworks, without ending.

    Raises:
        InterruptProcessingException: the user cancelled; the run's folder has the state.
        ValueError: too few LoRAs, one that says nothing of its prompts, or one of another model.
        RuntimeError: out of memory, with advice.
    """
    parameterisation(model.get_model_object("model_sampling"))  # before any work: can it be trained at all?
    for what, names in (("subjects", library.subjects), ("styles", library.styles)):
        if len(names) <= library.held_out:
            raise ValueError(
                f"There are {len(names)} {what}, of which {library.held_out} are held out: nothing is left to learn "
                "from. Add LoRAs, or lower held_out."
            )
    path = hypernetwork_path(filename)
    layers = model_layers(model)
    widths = {shape[0] for name, shape in layers.items() if is_asked(name) and len(shape) == 2}
    if not widths:
        raise ValueError("This model has no query or output projections that are known here: none to teach.")
    interrupt = Interrupt()
    reporter = Reporter(config.steps, node_id, interrupt)
    patcher = training_clone(model, config.precision)
    network: HyperNetwork
    folder: Path | None = None
    try:
        taught: list[list[Taught]] = []
        for number, names in enumerate((library.subjects, library.styles)):
            reporter.text(f"reading {len(names)} {('subjects', 'styles')[number]}")
            taught.append([_taught(name, layers, patcher, clip, vae, config, size, reporter) for name in names])
        leave_device(vae, clip)
        about = {
            "subjects": list(library.subjects),
            "styles": list(library.styles),
            "held_out": library.held_out,
            "seed": config.seed,
            "optimizer": config.optimizer,
            "cosine_weight": cosine_weight,
        }
        if resume_from.strip():
            folder = resumed_run(resume_from)[0]
            start = load_state(folder / "checkpoints" / FILE, about)
        else:
            folder, start = new_run_folder(run_name, "lora_rar"), None
            (folder / "checkpoints").mkdir()
        state = folder / "checkpoints" / FILE
        latents = [example.latents for each in taught for one in each for example in one.data.examples]
        reporter.text("loading the model")
        needed = training_memory(patcher, config, max(latents, key=Tensor.numel).unsqueeze(0))
        comfy.model_management.load_models_gpu([patcher], needed)
        kept = [each[: len(each) - library.held_out] for each in taught]
        pairs = [(a, b) for a in taught[0][len(kept[0]) :] for b in taught[1][len(kept[1]) :]]
        with ordinary_tensors(), autograd_weights(patcher.model):
            network = HyperNetwork(widths).begin(config.seed)
            found = train_rar(
                HostDenoiser(patcher, interrupt),
                network,
                is_asked,
                (kept[0], kept[1]),
                pairs,
                config,
                cosine_weight,
                Callbacks(progress=reporter.step, cancelled=interrupt.cancelled),
                start,
                lambda now: save_state(state, now, about),
            )
            network = network.to("cpu")
    except Exception as error:
        raise_advice(error, config)
        raise
    with ordinary_tensors():
        save_state(state, found.state, about)
        network.about = {**about, "steps": found.steps_done}
        save_network(folder / f"{folder.name}.safetensors", network)
        if found.steps_done < config.steps or interrupt.cancelled():
            log.info("Likeness: cancelled after %d steps. What was taught is in %s.", found.steps_done, folder)
            raise InterruptProcessingException()
        save_network(path, network)
        curve = loss_curve([record["loss"] for record in found.records], title="LoRA.rar: loss")
    return RarRun(network, path, curve, _report(found, library, network, config, cosine_weight), folder)


def hypernetwork_path(filename: str) -> Path:
    """The file below models/hypernetworks, of which no link leads out. Raises ValueError for another name."""
    path = model_file(HYPERNETWORKS, filename, "likeness/my_model")
    root = Path(folder_paths.get_folder_paths(HYPERNETWORKS)[0]).resolve()
    if ":" in filename or not path.resolve().is_relative_to(root):
        raise ValueError(f"the filename {filename[:100]!r} leads out of {root}; expected one like likeness/my_model")
    return path


def _taught(
    name: str,
    layers: Mapping[str, tuple[int, ...]],
    patcher: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    config: TrainingConfig,
    size: tuple[int, int],
    reporter: Reporter,
) -> Taught:
    """A LoRA with the pictures in a folder of its name beside it, or with prompts."""
    path = Path(folder_paths.get_full_path_or_raise("loras", name))
    metadata = load_lora(path, layers).metadata
    texts = CachedText(clip, patcher)
    pictures = path.with_suffix("")
    if pictures.is_dir():
        found = load_folder(pictures, trigger=metadata.get("likeness.trigger") or "sks", resolution=max(size), step=8)
        return Taught(name, partial(_load, path, layers), encode(patcher, clip, texts, vae, found, config.seed))
    drawing = Drawing(width=size[0], height=size[1])
    prompts = prompts_of(path, metadata)
    data = from_prompts(patcher, None, vae, texts, prompts, config, drawing, 0, reporter)
    return Taught(name, partial(_load, path, layers), data, imagined=True)


def _load(path: Path, layers: Mapping[str, tuple[int, ...]]) -> Mapping[str, LowRankDelta]:
    with ordinary_tensors():
        found = low_rank_layers(load_lora(path, layers))
        return {name: delta for name, delta in found.items() if name.startswith(MODEL)}


def prompts_of(path: Path, metadata: Mapping[str, str], most: int = 20) -> tuple[str, ...]:
    """What shows a LoRA: the lines of a .txt beside it, else the captions it was trained on, else its trigger word.

    Raises:
        ValueError: nothing of the three is there.
    """
    text = path.with_suffix(".txt")
    if text.is_file():
        lines = [line.strip() for line in text.read_text(encoding="utf-8").splitlines() if line.strip()]
        if lines:
            return tuple(lines[:most])
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        captions = [caption for folder in folders.values() for caption in folder if isinstance(caption, str)]
    except (ValueError, AttributeError, TypeError):
        captions = []
    trigger = metadata.get("likeness.trigger") or metadata.get("modelspec.trigger_phrase", "")
    # Of another trainer's tags a single word may be all there is; such a one is asked with the trigger.
    if whole := [caption for caption in captions if not trigger or trigger in caption]:
        return tuple(whole[:most])
    if trigger:
        return (f"a picture of {trigger}",)
    raise ValueError(
        f"{path.name} does not say what shows it: put {text.name} beside it, with its trigger word in a prompt on each "
        "line."
    )


def _report(
    found: RarTrained, library: Library, network: HyperNetwork, config: TrainingConfig, cosine_weight: float
) -> str:
    rows = []
    for names, fits in found.fits.items():
        for name, fit in zip(names, fits, strict=True):
            base = max(fit.base, 1e-30)
            rows.append([" + ".join(names), name, f"{fit.plain / base:.3f}", f"{fit.merged / base:.3f}"])
    count = sum(parameter.numel() for parameter in network.parameters())
    lines = [
        "# A hypernetwork for LoRA.rar",
        f"{count:,} numbers, for layers of the widths {', '.join(map(str, network.widths))}; taught in "
        f"{found.steps_done} steps at {config.learning_rate:g}, λ {cosine_weight:g}, seed {config.seed}, in "
        f"{found.seconds:.1f} seconds, on {len(library.subjects) - library.held_out} subjects and "
        f"{len(library.styles) - library.held_out} styles.",
    ]
    if rows:
        head = ["held-out pair", "LoRA", "plain sum", "LoRA.rar"]
        lines += [
            "Pairs that were not learnt from: how far the merge is from each LoRA alone, as a share of what it does.",
            markdown_table(head, rows),
        ]
    return "\n\n".join(lines) + "\n"
