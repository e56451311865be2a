"""LikenessMemoryOptions: training in less memory than the model would like."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainers.config import TrainingConfig
from .types import TrainingOptions


class LikenessMemoryOptions(io.ComfyNode):
    """Gradient checkpointing by share, block swap, torch.compile."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = TrainingConfig()
        return io.Schema(
            node_id="LikenessMemoryOptions",
            display_name="Memory Options (Likeness)",
            category="Likeness/trainers",
            description="More options of Train LoRA: how much of the model is recomputed or swapped out to save "
            "memory, and torch.compile. Place it after Training Options: what it shows overrides what comes before.",
            inputs=[
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=True,
                    tooltip="Recompute blocks in place of keeping what they computed: much less memory, slower by up "
                    "to a third.",
                ),
                io.Float.Input(
                    "checkpointing_share",
                    default=standard.checkpointing_share,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Of the blocks that are recomputed, those that keep most memory first. 1 saves most; less "
                    "is faster.",
                ),
                io.Float.Input(
                    "offload_blocks",
                    default=standard.offload_blocks,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Block swap: this share of the model's blocks lives in main memory and comes to the GPU "
                    "when it is needed. On a CPU they live in a temporary file. 0: none.",
                ),
                io.Boolean.Input(
                    "compile",
                    default=standard.compile,
                    tooltip="Run blocks through torch.compile. The first steps take minutes; worth it for long runs. "
                    "If it fails, training goes on without it and the report says so. Not with offload_blocks.",
                ),
                TrainingOptions.Input(
                    "options",
                    optional=True,
                    tooltip="Options to start from. Everything shown on this node overrides them.",
                ),
            ],
            outputs=[
                TrainingOptions.Output(display_name="options", tooltip="For the options input of Train LoRA."),
            ],
        )

    @classmethod
    def execute(cls, options: dict[str, Any] | None = None, **shown: Any) -> io.NodeOutput:
        """Lay what the node shows over the options it was given."""
        chosen = {**(options or {}), **shown}
        TrainingConfig.from_mapping(chosen)
        return io.NodeOutput(chosen)
