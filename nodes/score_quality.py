"""LikenessScoreQuality: how good pictures are, without references."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..metrics.rows import Rows
from .host.score_quality import maniqa_files, quality_rows
from .host.scores import OFF, as_pictures, label_inputs, labels, score_outputs, scored
from .types import MetricModel


class LikenessScoreQuality(io.ComfyNode):
    """Pictures -> NIQE, BRISQUE, aesthetic score, MANIQA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessScoreQuality",
            display_name="Score Quality (Likeness)",
            category="Likeness/metrics",
            description="How good each picture is by itself: is it blurred, noisy or overcooked (NIQE, BRISQUE, "
            "MANIQA), would people like it (aesthetic score). None of them knows your subject or prompt.",
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
                io.Combo.Input(
                    "maniqa",
                    optional=True,
                    options=[OFF, *maniqa_files()],
                    default=OFF,
                    tooltip="Predicted quality, about 0 to 1; higher. A file in models/metrics, ckpt_koniq10k.pt or "
                    "ckpt_kadid10k.pt: their scales differ. Pictures of 224 pixels or more; slow without a GPU.",
                ),
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
        maniqa: str = OFF,
    ) -> io.NodeOutput:
        """Score each picture."""
        shown, about = as_pictures(pictures, "pictures"), labels(method, subject, step)
        return scored(metrics, quality_rows(shown, niqe, brisque, aesthetic, clip, about, maniqa))
