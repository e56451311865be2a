"""LikenessMergeOptions: everything about a merge that most users leave as it is."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lora.load import DTYPES
from ..merging import options as merging
from ..merging.layer_weights import parse_layer_weights
from ..merging.ties import MAJORITIES
from .types import MergeOptions


class LikenessMergeOptions(io.ComfyNode):
    """Options of a merge."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = merging.MergeOptions()
        return io.Schema(
            node_id="LikenessMergeOptions",
            display_name="Merge Options (Likeness)",
            category="Likeness/merging",
            description="More options of Merge LoRAs: weights of single blocks and layers, what the methods know "
            "beside density, precision.",
            inputs=[
                io.String.Input(
                    "layer_weights",
                    default="",
                    multiline=True,
                    tooltip="A line a rule: a regular expression of layer names, then one number for all LoRAs or one "
                    r"for each, by which the weights are multiplied there: attn2 1 0.5, or output_blocks\.[0-2]\. 0. "
                    "The first that matches counts; 0 leaves a LoRA out of those layers.",
                ),
                io.Float.Input(
                    "scale",
                    default=standard.scale,
                    min=-100.0,
                    max=100.0,
                    step=0.05,
                    round=0.0001,
                    tooltip="λ: everything merged is multiplied by it. Where a method makes the result weaker than its "
                    "parts, as TIES and model stock do, 1.2 to 2 brings it back.",
                ),
                io.Float.Input(
                    "energy",
                    default=standard.output.energy,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="For output_rank energy: the share of each layer's squared singular values that is kept.",
                ),
                io.Combo.Input(
                    "majority",
                    options=list(MAJORITIES),
                    default=standard.majority,
                    tooltip="Of ties, dare-ties, della and knots: which sign wins at a place. total: that of the sum. "
                    "frequency: that which more LoRAs have.",
                ),
                io.Combo.Input(
                    "scope",
                    options=list(merging.SCOPES),
                    default=standard.scope,
                    tooltip="Of ties and magnitude: whether density counts in each layer, or over the whole model, so "
                    "that layers with small changes lose more of them.",
                ),
                io.Float.Input(
                    "epsilon",
                    default=standard.epsilon,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="Of della: how far the chance to be kept reaches around density, from the smallest entry "
                    "to the largest.",
                ),
                io.Float.Input(
                    "outliers",
                    default=standard.outliers,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=0.0001,
                    tooltip="Of breadcrumbs: this share of the largest entries is left out.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(DTYPES),
                    default="fp32",
                    tooltip="Precision of the merged LoRA. fp32 is exact; Save LoRA (Likeness) rounds on its own.",
                ),
                io.Boolean.Input(
                    "measure",
                    default=standard.measure,
                    tooltip="Cosines and opposite signs in report and heat map. Off is faster: with linear they take "
                    "most of the time.",
                ),
                MergeOptions.Input(
                    "options",
                    optional=True,
                    tooltip="Options to start from. Everything shown on this node overrides them.",
                ),
            ],
            outputs=[MergeOptions.Output(display_name="options", tooltip="For the options input of Merge LoRAs.")],
        )

    @classmethod
    def execute(cls, options: dict[str, Any] | None = None, **shown: Any) -> io.NodeOutput:
        """Lay what the node shows over the options it was given."""
        parse_layer_weights(shown["layer_weights"])  # refused here, where it was written
        return io.NodeOutput({**(options or {}), **shown})
