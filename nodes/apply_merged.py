"""LikenessApplyMerged: a LORA_MODEL into MODEL and CLIP, for drawing and for the host's checkpoint save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.sd
from comfy_api.latest import io, ui
from torch import Tensor

from ..lora import suffixes
from ..lora.keys import canonicalise, check_fit
from ..lora.model import LoraTensors
from ..lora.resolve import TEXT_ENCODERS, layer_name
from . import host
from .types import LoraModel


class LikenessApplyMerged(io.ComfyNode):
    """MODEL, CLIP and LORA_MODEL -> both changed by it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        strength = {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.05, "round": 0.0001}
        return io.Schema(
            node_id="LikenessApplyMerged",
            display_name="Apply Merged LoRA (Likeness)",
            category="Likeness/merging",
            description="Applies a LORA_MODEL to the model and its text encoders. Connect ComfyUI's Save Checkpoint "
            "behind it, and the LoRA is baked into the checkpoint. What does not fit is an error.",
            inputs=[
                io.Model.Input("model", tooltip="The base model that the LoRA is meant for."),
                LoraModel.Input("lora", tooltip="From Merge LoRAs, Load LoRA (Likeness), or any node that gives one."),
                io.Float.Input("strength_model", **strength, tooltip="How strongly the model is changed."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoders, where the LoRA changes them, too."),
                io.Float.Input(
                    "strength_clip", **strength, optional=True, tooltip="How strongly the text encoders are changed."
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For sampling, or for Save Checkpoint."),
                io.Clip.Output(display_name="clip", tooltip="For prompts, or for Save Checkpoint."),
                io.String.Output(display_name="report", tooltip="How many layers were changed."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, lora: Mapping[str, Tensor], strength_model: float, clip: Any = None, strength_clip: float = 1.0
    ) -> io.NodeOutput:
        """Check, then hand it to the host, which adds ΔW to the weights when it loads or saves them."""
        layers = host.model_layers(model)
        if not isinstance(lora, LoraTensors):
            found = canonicalise(lora, layers)
            lora = {**found.tensors, **{key: lora[key] for key in found.unmatched if key in lora}}
        check_fit(lora, layers)
        known = comfy.lora.model_lora_keys_unet(model.model, {})
        if clip is not None:
            known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
        bases = dict.fromkeys(split[0] if (split := suffixes.split(key)) else key for key in lora)
        of_text = [base for base in bases if layer_name(base).startswith(TEXT_ENCODERS)]
        waiting = set(of_text) if clip is None else set()
        if strange := [base for base in bases if base not in known and base not in waiting]:
            raise ValueError(
                f"{len(strange)} of the LoRA's {len(bases)} layers are not in this model; the first is {strange[0]}. "
                "It was made for another model"
            )
        lora = {key: lora[key] for key in lora if (suffixes.split(key) or (key,))[0] not in waiting}
        changed, changed_clip = comfy.sd.load_lora_for_models(model, clip, lora, strength_model, strength_clip)
        report = f"{len(bases) - len(of_text)} layers of the model × {strength_model:g}"
        if of_text and clip is None:
            report += f"; {len(of_text)} layers of text encoders left out: connect clip"
        elif of_text:
            report += f", {len(of_text)} layers of text encoders × {strength_clip:g}"
        return io.NodeOutput(changed, changed_clip, report, ui=ui.PreviewText(report))
