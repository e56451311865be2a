"""LikenessTextEncoderOptions: whether and how the text encoders are trained, too."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainers.config import TEXT_ENCODERS, TrainingConfig
from .types import TrainingOptions

USUAL_RATE = 5e-5
"""Half of the usual learning rate of the diffusion model."""


class LikenessTextEncoderOptions(io.ComfyNode):
    """Text encoders of a training run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessTextEncoderOptions",
            display_name="Text Encoder Options (Likeness)",
            category="Likeness/trainers",
            description="Trains the text encoders together with the model, at a learning rate of their own: the "
            "trigger word gets a meaning of its own. The LoRA then belongs on CLIP, too.",
            inputs=[
                io.Float.Input(
                    "text_encoder_learning_rate",
                    default=USUAL_RATE,
                    min=0.0,
                    max=1e6,
                    step=1e-6,
                    round=1e-10,
                    tooltip="Half of the model's learning rate, or less: 5e-5 to 5e-6. 0 does not train them.",
                ),
                io.Combo.Input(
                    "text_encoders",
                    options=list(TEXT_ENCODERS),
                    default="all",
                    tooltip="first and second in the model's order: SDXL has CLIP-L and CLIP-G, Flux CLIP-L and T5. "
                    "custom: the layers that text_encoder_pattern matches. For SD3 and Flux, first: T5 is large.",
                ),
                io.String.Input(
                    "text_encoder_pattern",
                    default="",
                    tooltip=r"With custom: a regular expression of layer names, e.g. ^clip_l\. or "
                    r"layers\.(9|10|11)\..*(q|v)_proj$",
                ),
                TrainingOptions.Input(
                    "options",
                    optional=True,
                    tooltip="Options to start from. Everything shown on this node overrides them.",
                ),
            ],
            outputs=[
                TrainingOptions.Output(
                    display_name="options", tooltip="For the options input of Train LoRA, or of another options node."
                ),
            ],
        )

    @classmethod
    def execute(cls, options: dict[str, Any] | None = None, **shown: Any) -> io.NodeOutput:
        """Lay what the node shows over the options it was given."""
        chosen = {**(options or {}), **shown}
        TrainingConfig.from_mapping(chosen)
        return io.NodeOutput(chosen)
