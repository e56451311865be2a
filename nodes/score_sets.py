"""LikenessScoreSets: how far a set of pictures is from a set of references."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..metrics.inception import RESIZES
from ..metrics.rows import Rows
from .host.score_sets import SetOptions, set_rows
from .host.scores import as_pictures, label_inputs, labels, score_outputs, scored
from .types import MetricModel


class LikenessScoreSets(io.ComfyNode):
    """Two sets of pictures -> FID, KID; one -> Inception score."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessScoreSets",
            display_name="Score Sets (Likeness)",
            category="Likeness/metrics",
            description="How far many generated pictures as a whole are from many real ones: FID and KID; and the "
            "Inception score. For hundreds of pictures or more: what small sets cost is shown beside.",
            is_output_node=True,
            inputs=[
                io.Image.Input("pictures", tooltip="Generated pictures, the more the better."),
                io.Image.Input("references", optional=True, tooltip="Real pictures, for FID and KID."),
                io.Boolean.Input("fid", default=True, tooltip="Fréchet distance; lower. Biased up below 2048."),
                io.Boolean.Input(
                    "kid", default=True, tooltip="Kernel distance × 1000; lower. No bias: the one for small sets."
                ),
                io.Boolean.Input(
                    "inception_score",
                    default=False,
                    tooltip="Clear and varied classes; higher. Void for pictures of one subject. Needs "
                    "pt_inception-2015-12-05-6726825d.pth in models/metrics.",
                ),
                io.Combo.Input(
                    "resize",
                    options=list(RESIZES),
                    tooltip="How pictures come to 299 × 299. clean: with antialiasing. bilinear: without, as "
                    "torchmetrics and most older papers. Never compare one with the other.",
                ),
                MetricModel.Input(
                    "model",
                    optional=True,
                    tooltip="Another network's features in place of Inception's, e.g. DINOv2. Then no Inception score.",
                ),
                io.Int.Input(
                    "kid_subset_size",
                    optional=True,
                    default=1000,
                    min=2,
                    max=100_000,
                    tooltip="Pictures in a subset of KID; never more than the smaller set has.",
                ),
                io.Int.Input(
                    "kid_subsets", optional=True, default=100, min=1, max=10_000, tooltip="How many subsets of KID."
                ),
                io.Int.Input(
                    "seed", optional=True, default=0, min=0, max=2**32 - 1, tooltip="Which subsets, halves and splits.",
                    control_after_generate=False,
                ),
                *label_inputs(),
            ],
            outputs=score_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        pictures: Any,
        fid: bool,
        kid: bool,
        inception_score: bool,
        resize: str,
        references: Any = None,
        model: Any = None,
        kid_subset_size: int = 1000,
        kid_subsets: int = 100,
        seed: int = 0,
        metrics: Rows = (),
        method: str = "",
        subject: str = "",
        step: int = 0,
    ) -> io.NodeOutput:
        """Embed, compare."""
        options = SetOptions(fid, kid, inception_score, resize, kid_subset_size, kid_subsets, seed)
        known = None if references is None else as_pictures(references, "references")
        rows = set_rows(as_pictures(pictures, "pictures"), known, options, model, labels(method, subject, step))
        return scored(metrics, rows)
