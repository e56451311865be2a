"""LikenessInspectLoRA: what is in a LoRA."""

from __future__ import annotations

from typing import Any

import comfy.utils
from comfy_api.latest import io, ui

from ..lora.inspection import inspect_lora, to_json
from ..lora.inspection_plot import inspection_plot
from ..lora.inspection_table import inspection_table
from .types import LoraModel


class LikenessInspectLoRA(io.ComfyNode):
    """LORA_MODEL -> ranks, norms and spectra of its layers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessInspectLoRA",
            display_name="Inspect LoRA (Likeness)",
            category="Likeness/lora",
            description="Shows what is in a LoRA of any kind: how much of its rank each layer uses, which layers and "
            "blocks changed most, and what the file says of itself.",
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="The LoRA, e.g. from Load LoRA (Likeness) or from Train LoRA."),
            ],
            outputs=[
                io.Image.Output(
                    display_name="plot",
                    tooltip="Above: rank and effective rank by block. Below: every layer's singular values. Self- and "
                    "cross-attention apart.",
                ),
                io.String.Output(
                    display_name="table",
                    tooltip="What the file says, sums by role and block, and a row a layer. Markdown.",
                ),
                io.String.Output(display_name="json", tooltip="The same with all singular values, for programs."),
            ],
        )

    @classmethod
    def execute(cls, lora: dict[str, Any]) -> io.NodeOutput:
        """Look."""
        bar = comfy.utils.ProgressBar(1)
        found = inspect_lora(lora, bar.update_absolute)
        plot = inspection_plot(found)
        return io.NodeOutput(plot, inspection_table(found), to_json(found), ui=ui.PreviewImage(plot, cls=cls))
