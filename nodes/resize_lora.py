"""LikenessResizeLoRA: a finished LoRA at smaller ranks."""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy_api.latest import io, ui

from ..lora.resize import MODES, OTHERS, Truncation, resize_lora
from ..lora.resize_report import resize_report
from .types import LoraModel


class LikenessResizeLoRA(io.ComfyNode):
    """LORA_MODEL -> the best approximation of it at smaller ranks."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessResizeLoRA",
            display_name="Resize LoRA (Likeness)",
            category="Likeness/lora",
            description="Makes a finished LoRA smaller: every layer is cut to the rank that you give, or to the "
            "smallest rank that keeps as much of it as you ask. No layer becomes larger, and the report says what each "
            "lost.",
            inputs=[
                LoraModel.Input("lora", tooltip="The LoRA, e.g. from Load LoRA (Likeness) or from Train LoRA."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=MODES[1],
                    tooltip="rank: every layer to the same rank. energy: each to the smallest rank that keeps this "
                    "share of its squared singular values. relative error: each to the smallest rank that is no "
                    "further from the old layer than this share of it.",
                ),
                io.Int.Input(
                    "rank", default=16, min=1, max=4096, tooltip="For mode rank: no layer has more than this."
                ),
                io.Float.Input(
                    "energy",
                    default=0.95,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="For mode energy: the share of each layer that is kept. 0.9 is a small file, 0.99 a "
                    "careful one, 1 leaves out only what is not there.",
                ),
                io.Float.Input(
                    "tolerance",
                    default=0.2,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=0.0001,
                    tooltip="For mode relative error: how far a layer may move, as a share of its size. 0.3 is about "
                    "energy 0.91, 0.1 is energy 0.99.",
                ),
                io.Int.Input(
                    "max_rank",
                    default=0,
                    min=0,
                    max=4096,
                    tooltip="For energy and relative error: no layer has more than this, even if it then keeps less "
                    "than asked. 0: no limit.",
                ),
                io.Combo.Input(
                    "other_kinds",
                    options=list(OTHERS),
                    tooltip="Whether LoHa, LoKr and full differences become ordinary LoRAs: where that is smaller, "
                    "always (even where it is larger), or never. DoRA and OFT stay as they are.",
                ),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Save LoRA, Load LoRA Model, or Inspect LoRA."),
                io.String.Output(
                    display_name="report",
                    tooltip="Per layer: old and new rank, energy kept, relative error; sums, and sizes before and "
                    "after. Markdown.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        lora: dict[str, Any],
        mode: str,
        rank: int,
        energy: float,
        tolerance: float,
        max_rank: int,
        other_kinds: str,
    ) -> io.NodeOutput:
        """Cut."""
        how = Truncation(mode, rank, energy, tolerance, max_rank, other_kinds)
        bar = comfy.utils.ProgressBar(1)
        resized, layers = resize_lora(lora, how, bar.update_absolute)
        report = resize_report(layers, how)
        return io.NodeOutput(resized, report, ui=ui.PreviewText(report.partition("\n## Layers")[0]))
