"""LikenessScoreQuality: how good pictures are, without references."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..metrics.rows import Rows
from .host.score_quality import quality_rows
from .host.scores import as_pictures, label_inputs, labels, score_outputs, scored
from .types import MetricModel


class LikenessScoreQuality(io.ComfyNode):
    """Pictures -> NIQE, BRISQUE, aesthetic score."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessScoreQuality",
            display_name="Score Quality (Likeness)",
            category="Likeness/metrics",
            description="How good each picture is by itself: is it blurred, noisy or overcooked (NIQE, BRISQUE), would "
            "people like it (aesthetic score). None of them knows your subject or prompt.",
            is_output_node=True,
            inputs=[
                io.Image.Input("pictures", tooltip="Pictures, 96 × 192 or larger for NIQE."),
                io.Boolean.Input(
                    "niqe",
                    default=True,
                    tooltip="Distance from good photographs; lower. Needs no file. Not for drawings.",
                ),
                io.Boolean.Input(
                    "brisque",
                    default=False,
                    tooltip="Predicted bad opinion, about 0 to 100; lower. Needs allmodel, brisque_svm_weights.pt or "
                    "brisque.safetensors in models/metrics.",
                ),
                io.Boolean.Input(
                    "aesthetic",
                    default=False,
                    tooltip="Predicted liking, about 1 to 10; higher. Needs sac+logos+ava1-l14-linearMSE.pth in "
                    "models/metrics, and clip.",
                ),
                MetricModel.Input("clip", optional=True, tooltip="OpenAI's CLIP ViT-L/14, for the aesthetic score."),
                *label_inputs(),
            ],
            outputs=score_outputs(),
        )

    @classmethod
    def execute(
        cls,
        pictures: Any,
        niqe: bool,
        brisque: bool,
        aesthetic: bool,
        clip: Any = None,
        metrics: Rows = (),
        method: str = "",
        subject: str = "",
        step: int = 0,
    ) -> io.NodeOutput:
        """Score each picture."""
        about = labels(method, subject, step)
        return scored(metrics, quality_rows(as_pictures(pictures, "pictures"), niqe, brisque, aesthetic, clip, about))
