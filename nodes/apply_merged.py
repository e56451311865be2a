"""LikenessApplyMerged: a LORA_MODEL into MODEL and CLIP, for drawing and for the host's checkpoint save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

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
        changed, changed_clip, report = host.applied(model, lora, strength_model, clip, strength_clip)
        return io.NodeOutput(changed, changed_clip, report, ui=ui.PreviewText(report))
