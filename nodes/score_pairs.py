"""LikenessScorePairs: is a picture the same as its target?"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..metrics.rows import Rows
from .host.score_pictures import OFF, lpips_files, mean_of, pair_rows
from .host.scores import as_pictures, label_inputs, labels, score_outputs, scored


class LikenessScorePairs(io.ComfyNode):
    """Pictures and targets -> SSIM, PSNR, LPIPS."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessScorePairs",
            display_name="Score Pairs (Likeness)",
            category="Likeness/metrics",
            description="How near each picture is to its target, place by place: SSIM, PSNR, LPIPS. For "
            "reconstruction, inpainting and truth; of a subject in a new scene they say nothing.",
            is_output_node=True,
            inputs=[
                io.Image.Input("pictures", tooltip="Pictures."),
                io.Image.Input(
                    "targets", tooltip="What they should be: one each, in order, or one for all; same size."
                ),
                io.Boolean.Input("ssim", default=True, tooltip="Structural similarity, to 1; higher. 11 × 11, σ 1.5."),
                io.Boolean.Input("psnr", default=True, tooltip="Signal to noise in dB; higher."),
                io.Combo.Input(
                    "lpips",
                    options=[OFF, *lpips_files()],
                    default=OFF,
                    tooltip="Distance as people see it; lower. A file of AlexNet or VGG16 in models/metrics, e.g. "
                    "alexnet-owt-7be5be79.pth; needs pip install lpips.",
                ),
                *label_inputs(),
                io.Int.Input(
                    "batch_size",
                    optional=True,
                    default=8,
                    min=1,
                    max=64,
                    tooltip="Pairs at once. Fewer need less memory.",
                ),
            ],
            outputs=[
                *score_outputs(),
                io.Float.Output(display_name="ssim", tooltip="Mean SSIM; NaN if it is off."),
                io.Float.Output(display_name="psnr", tooltip="Mean PSNR of pairs that differ; NaN if it is off."),
                io.Float.Output(display_name="lpips", tooltip="Mean LPIPS; NaN if it is off."),
            ],
        )

    @classmethod
    def execute(
        cls,
        pictures: Any,
        targets: Any,
        ssim: bool,
        psnr: bool,
        lpips: str,
        metrics: Rows = (),
        method: str = "",
        subject: str = "",
        step: int = 0,
        batch_size: int = 8,
    ) -> io.NodeOutput:
        """Score each pair."""
        shown, known = as_pictures(pictures, "pictures"), as_pictures(targets, "targets")
        rows = pair_rows(shown, known, ssim, psnr, lpips, batch_size, labels(method, subject, step))
        means = (mean_of([row for row in rows if row.metric == name]) for name in ("ssim", "psnr", "lpips"))
        return scored(metrics, rows, *means)
