"""LikenessLoadMetricModel: the network that scores pictures."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..metrics.backbones import AUTO, FAMILIES
from .host.metric_model import BUILT_IN, metric_model, model_names, model_stamp
from .types import MetricModel


class LikenessLoadMetricModel(io.ComfyNode):
    """A folder of CLIP, DINO, DINOv2, SigLIP, any of timm's or ImageReward, or the built-in network -> METRIC_MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessLoadMetricModel",
            display_name="Load Metric Model (Likeness)",
            category="Likeness/metrics",
            description="Loads the network that scores pictures: CLIP, DINO, DINOv2, SigLIP, any of timm's or "
            "ImageReward from a folder in models/metrics, or a small one that needs no download where its package is "
            "installed.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=model_names(),
                    default=BUILT_IN,
                    tooltip="Folders below models/metrics (and models/clip_vision), as on huggingface.co: config.json "
                    "and model.safetensors; open_clip's and timm's layouts, too. ImageReward: ImageReward.pt, "
                    "med_config.json and BERT's vocab.txt.",
                ),
                io.Combo.Input(
                    "family",
                    options=list(FAMILIES),
                    default=AUTO,
                    tooltip="What the folder holds. auto: seen from its files. Say DINO of a plain ViT or one of "
                    "timm's that is DINO by training: it is then shown pictures as the paper does.",
                ),
            ],
            outputs=[
                MetricModel.Output(display_name="metric_model", tooltip="For nodes that score pictures."),
                io.String.Output(
                    display_name="description",
                    tooltip="Network and preprocessing, as in tables. Figures of different ones cannot be compared.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str = BUILT_IN, **_: Any) -> str:
        """A folder that has changed is read again."""
        return model_stamp(model)

    @classmethod
    def execute(cls, model: str, family: str) -> io.NodeOutput:
        """Read it, unless it is there from before."""
        found = metric_model(model, family)
        return io.NodeOutput(found, found.description)
