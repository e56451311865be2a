"""LikenessRouteLoRAs: which LoRAs of a folder a prompt asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..lora.inspection import UNKNOWN, architecture_of
from ..lora.load import load_lora
from ..merging.route import Route, RouteOptions, named_files, route
from ..merging.route_card import card_stamp, read_card
from ..merging.route_prompt import parse_prompt
from ..merging.route_report import route_files, route_json, route_plot, route_table
from ..merging.selection import select_files
from . import host
from .host.similarity import text_embedder

LoraStack = io.Custom("LORA_STACK")
"""What many packs call a list of (file below models/loras, strength of the model, strength of the text encoders)."""


class LikenessRouteLoRAs(io.ComfyNode):
    """A prompt -> LoRAs with weights, applied and as a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = RouteOptions()
        trust = {"min": 0.0, "max": 1.0, "step": 0.05, "round": 0.0001}
        return io.Schema(
            node_id="LikenessRouteLoRAs",
            display_name="Route LoRAs (Likeness)",
            category="Likeness/merging",
            description="Chooses the LoRAs that a prompt asks for out of a whole folder, with weights, by trigger "
            "words, captions and names, and says why. Only those that are chosen are loaded.",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    tooltip="What the picture shows. <lora:name:0.7> takes a LoRA for certain, with that weight; 0 "
                    "keeps it out.",
                ),
                io.String.Input(
                    "loras",
                    default="",
                    multiline=True,
                    placeholder="all of models/loras; or a line each: a folder, a file, or a pattern: style/* 0.6",
                    tooltip="Which LoRAs to choose from. A line each: a folder below models/loras, a file, or a "
                    "pattern such as style/*, and after it the highest weight if it is not 1. Empty: all.",
                ),
                io.Float.Input(
                    "total",
                    default=standard.total,
                    min=0.01,
                    max=100.0,
                    step=0.05,
                    round=0.0001,
                    tooltip="What all weights together come to, at most. Two or three LoRAs bear more than 1 where "
                    "they change different things.",
                ),
                io.Int.Input(
                    "most",
                    default=standard.most,
                    min=0,
                    max=100,
                    tooltip="So many LoRAs are chosen at most, beside those that the prompt names itself.",
                ),
                io.Float.Input(
                    "threshold",
                    default=standard.threshold,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.0001,
                    tooltip="The score that a LoRA must reach. Lower finds more, by looser hints.",
                ),
                io.Float.Input(
                    "trigger_evidence",
                    default=standard.trigger,
                    **trust,
                    tooltip="How far to trust trigger words: the score of a LoRA whose trigger words stand in the "
                    "prompt, word for word.",
                ),
                io.Float.Input(
                    "word_evidence",
                    default=standard.words,
                    **trust,
                    tooltip="How far to trust words of the prompt that are in the LoRA's captions, tags and name. What "
                    "few LoRAs have says more.",
                ),
                io.Float.Input(
                    "text_evidence",
                    default=standard.text,
                    **trust,
                    tooltip="How far to trust the text encoders in how much prompt and LoRA are alike. Needs clip.",
                ),
                io.Boolean.Input(
                    "apply",
                    default=True,
                    tooltip="Load what is chosen, and apply it to model and clip. Off: they pass unchanged, for "
                    "merging instead.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="Gets the LoRAs; those of another kind of model are left out."
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Gets the LoRAs where they change text encoders; compares texts."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="With the chosen LoRAs applied."),
                io.Clip.Output(display_name="clip", tooltip="With the chosen LoRAs applied, if model is connected."),
                io.String.Output(
                    display_name="prompt", tooltip="The prompt without <lora:…>, for the text encoder's node."
                ),
                io.String.Output(
                    display_name="files", tooltip="The chosen files and weights, for the files of Merge LoRAs."
                ),
                LoraStack.Output(
                    display_name="lora_stack", tooltip="The same as a list, which nodes of other packs apply."
                ),
                io.String.Output(
                    display_name="table", tooltip="Every LoRA with its weight, score, evidence and why. Markdown."
                ),
                io.Image.Output(display_name="plot", tooltip="The scores as bars, and what they are made of."),
                io.String.Output(display_name="json", tooltip="The table for programs."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, prompt: str | None = "", loras: str | None = "", **_: Any) -> str:
        """A LoRA that is new, or says something new of itself, is looked at."""
        try:
            files = dict.fromkeys(_selected(loras or ""))
            files |= dict.fromkeys(named_files(parse_prompt(prompt or "").tags, _listed(), {}))
            return str([(file, card_stamp(_path(file))) for file in files])
        except (ValueError, OSError) as error:  # execute says it
            return str(error)

    @classmethod
    def execute(
        cls,
        prompt: str,
        loras: str,
        total: float,
        most: int,
        threshold: float,
        trigger_evidence: float,
        word_evidence: float,
        text_evidence: float,
        apply: bool = True,
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        """Look at every file's header, choose, apply."""
        options = RouteOptions(total, most, threshold, trigger_evidence, word_evidence, text_evidence)
        parsed, limits = parse_prompt(prompt), _selected(loras)
        cards = {file: read_card(_path(file), file) for file in limits}
        named = named_files(parsed.tags, _listed(), {file: card.title for file, card in cards.items()})
        cards |= {file: read_card(_path(file), file) for file in named if file not in cards}
        bar = comfy.utils.ProgressBar(1)
        found = route(
            parsed,
            list(cards.values()),
            options,
            named=named,
            limits=limits,
            architecture=UNKNOWN if model is None else architecture_of(host.model_layers(model)),
            embed=text_embedder(clip, bar.update_absolute) if clip is not None and text_evidence else None,
        )
        if apply and model is not None:
            model, clip = _applied(model, clip, found)
        plot = route_plot(found)
        missing = "Route LoRAs (Likeness) has no {0} to hand on: connect one to its input {0}."
        return io.NodeOutput(
            ExecutionBlocker(missing.format("model")) if model is None else model,
            ExecutionBlocker(missing.format("clip")) if clip is None else clip,
            found.prompt,
            route_files(found),
            [(one.card.file, one.weight, one.clip) for one in found.chosen],
            route_table(found),
            plot,
            route_json(found),
            ui=ui.PreviewImage(plot, cls=cls),
        )


def _listed() -> list[str]:
    """The LoRAs that the host knows, and the only files that are opened."""
    return list(folder_paths.get_filename_list("loras"))


def _path(file: str) -> Path:
    return Path(folder_paths.get_full_path_or_raise("loras", file))


def _selected(loras: str) -> Mapping[str, float]:
    """file -> highest weight."""
    files = _listed()
    if not files:
        raise ValueError("there is no LoRA in models/loras to choose from; train one, or put one there")
    return dict(select_files(loras if loras.strip() else ".", files))


def _applied(model: Any, clip: Any, found: Route) -> tuple[Any, Any]:
    """MODEL and CLIP with the chosen LoRAs; only here are they loaded."""
    layers = host.model_layers(model)
    for one in found.chosen:
        lora = load_lora(_path(one.card.file), layers)
        model, clip, _ = host.applied(model, lora, one.weight, clip, one.clip)
    return model, clip
