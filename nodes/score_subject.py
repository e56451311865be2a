"""LikenessScoreSubject: does a picture look like the subject?"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..metrics.rows import Rows
from .host.score_pictures import MEAN, NEAREST, Masks, mean_of, subject_rows
from .host.scores import as_pictures, label_inputs, labels, score_outputs, scored
from .types import MetricModel


class LikenessScoreSubject(io.ComfyNode):
    """Pictures and references -> CLIP-I, DINO, DINOv2 or another network's cosine."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessScoreSubject",
            display_name="Score Subject (Likeness)",
            category="Likeness/metrics",
            description="How much each picture looks like the reference pictures: CLIP-I, DINO or DINOv2, by the "
            "network. With masks, the subject's region alone.",
            is_output_node=True,
            inputs=[
                io.Image.Input("pictures", tooltip="Generated pictures."),
                io.Image.Input(
                    "references", tooltip="Photos of the subject; not those that it was trained on, if any."
                ),
                MetricModel.Input("metric_model", tooltip="DINO or DINOv2 tell subjects apart; CLIP sees kinds."),
                io.Combo.Input(
                    "compare",
                    options=[MEAN, NEAREST],
                    tooltip="mean: DreamBooth's figure. nearest: near 1 throughout while the mean is not says that a "
                    "reference was copied.",
                ),
                *label_inputs(),
                io.Mask.Input(
                    "masks",
                    optional=True,
                    tooltip="Where the subject is in the pictures, one each or one for all: outside becomes grey. An "
                    "empty mask counts as no subject, and gets no score.",
                ),
                io.Mask.Input("reference_masks", optional=True, tooltip="Where it is in the references."),
                io.Float.Input(
                    "margin",
                    optional=True,
                    default=0.1,
                    min=0.0,
                    max=2.0,
                    step=0.05,
                    tooltip="With masks: how much is left around the subject, of its longer side.",
                ),
            ],
            outputs=[
                *score_outputs(),
                io.Float.Output(display_name="mean", tooltip="Mean over pictures with a score."),
            ],
        )

    @classmethod
    def execute(
        cls,
        pictures: Any,
        references: Any,
        metric_model: Any,
        compare: str,
        metrics: Rows = (),
        method: str = "",
        subject: str = "",
        step: int = 0,
        masks: Any = None,
        reference_masks: Any = None,
        margin: float = 0.1,
    ) -> io.NodeOutput:
        """Score each picture."""
        about = labels(method, subject, step)
        shown, known = as_pictures(pictures, "pictures"), as_pictures(references, "references")
        rows = subject_rows(shown, known, metric_model, compare, Masks(masks, reference_masks, margin), about)
        return scored(metrics, rows, mean_of(rows))
