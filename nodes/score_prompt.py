"""LikenessScorePrompt: does a picture show what its prompt says?"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..metrics.clip_score import PAIRINGS
from ..metrics.rows import Rows
from .host.score_pictures import mean_of, prompt_rows, prompts_of
from .host.scores import as_pictures, label_inputs, labels, score_outputs, scored
from .types import MetricModel

COSINE, SCALED = SCORES = ("cosine", "2.5 · max(cos, 0)")


class LikenessScorePrompt(io.ComfyNode):
    """Pictures and prompts -> CLIP-T, or ImageReward."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessScorePrompt",
            display_name="Score Prompt (Likeness)",
            category="Likeness/metrics",
            description="How well each picture shows what its prompt says: CLIP-T, the cosine of CLIP's embeddings, or "
            "ImageReward, how much people would like the picture for its prompt.",
            is_output_node=True,
            inputs=[
                io.Image.Input("pictures", tooltip="Generated pictures."),
                MetricModel.Input(
                    "metric_model",
                    tooltip="A CLIP or SigLIP, e.g. openai/clip-vit-base-patch32; or ImageReward, which gives its own "
                    "score.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="a picture of sks dog",
                    tooltip="One for all pictures, or one a line for each picture in order, e.g. from Evaluate.",
                ),
                io.String.Input(
                    "token", default="", tooltip="The word that was taught, e.g. sks. CLIP does not know it."
                ),
                io.String.Input(
                    "class_noun", default="", tooltip="What stands in the token's place when it is scored, e.g. dog."
                ),
                io.Combo.Input(
                    "pairing",
                    options=list(PAIRINGS),
                    tooltip="matched: each picture with its own prompt. all pairs: each picture with every prompt, as "
                    "one published study averages; another metric, for comparing with it.",
                ),
                io.Combo.Input(
                    "score",
                    options=list(SCORES),
                    tooltip="cosine: as DreamBooth's tables; with ImageReward, its reward. 2.5 · max(cos, 0): "
                    "CLIPScore of Hessel et al.",
                ),
                *label_inputs(),
            ],
            outputs=[*score_outputs(), io.Float.Output(display_name="mean", tooltip="Mean over the pictures.")],
        )

    @classmethod
    def execute(
        cls,
        pictures: Any,
        metric_model: Any,
        prompts: str,
        token: str,
        class_noun: str,
        pairing: Any,
        score: str,
        metrics: Rows = (),
        method: str = "",
        subject: str = "",
        step: int = 0,
    ) -> io.NodeOutput:
        """Score each picture."""
        about = labels(method, subject, step)
        asked = prompts_of(prompts, token, class_noun)
        shown = as_pictures(pictures, "pictures")
        rows = prompt_rows(shown, asked, metric_model, pairing, score == SCALED, about)
        return scored(metrics, rows, mean_of(rows))
