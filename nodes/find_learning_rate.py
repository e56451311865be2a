"""LikenessFindLearningRate: a short run with a growing learning rate shows which one to train with."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.config import TrainingConfig
from ..trainers.rate_finder import sweep_plot, sweep_table
from . import host
from .options import UNTOUCHED
from .rows import alpha_input, seed_input, weighting_input
from .types import Dataset, TrainingOptions


class LikenessFindLearningRate(io.ComfyNode):
    """The learning rate range test."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessFindLearningRate",
            display_name="Find Learning Rate (Likeness)",
            category="Likeness/trainers",
            description="A short training run whose learning rate grows at each step, and the loss it has at each, "
            "always on the same noise. Suggests the rate at which the loss falls most steeply. The model is untouched.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Model.Input("model", tooltip="The model that is to be taught."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                Dataset.Input("dataset", tooltip="The pictures, from Dataset (Likeness)."),
                io.Int.Input(
                    "steps",
                    default=100,
                    min=10,
                    max=10_000,
                    tooltip="Learning rates that are tried. 60 to 100 is enough.",
                ),
                io.Float.Input(
                    "lowest_rate",
                    default=1e-6,
                    min=1e-12,
                    max=1.0,
                    step=1e-6,
                    round=1e-12,
                    tooltip="The first learning rate: so low that nothing happens.",
                ),
                io.Float.Input(
                    "highest_rate",
                    default=0.1,
                    min=1e-9,
                    max=1e4,
                    step=0.01,
                    round=1e-9,
                    tooltip="The last learning rate. The sweep ends by itself before it when the loss explodes.",
                ),
                io.Int.Input("rank", default=16, min=1, max=4096, tooltip="As you will train. It matters."),
                alpha_input("As you will train. It matters: half of it wants about twice the rate."),
                io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="As you will train."),
                seed_input("Decides all that is random. The same seed gives the same curve."),
                TrainingOptions.Input(
                    "options",
                    optional=True,
                    tooltip="From Training Options (Likeness): optimizer and targets as you will train.",
                ),
                io.Int.Input(
                    "probes",
                    optional=True,
                    default=4,
                    min=1,
                    max=256,
                    tooltip="Batches on which the loss is measured after each step. More: a smoother curve, slower.",
                ),
                weighting_input(
                    "As you will train: auto is what Train LoRA has by itself. Loss and Noise Options overrides it."
                ),
            ],
            outputs=[
                io.Float.Output(
                    display_name="learning_rate", tooltip="Where the loss falls most steeply, for Train LoRA."
                ),
                io.Image.Output(display_name="plot", tooltip="Loss over learning rates."),
                io.String.Output(display_name="table", tooltip="Every rate with its loss, and the suggestion."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        steps: int,
        lowest_rate: float,
        highest_rate: float,
        rank: int,
        alpha: float,
        batch_size: int,
        seed: int,
        options: dict[str, Any] | None = None,
        probes: int = 4,
        weighting: str = "none",
    ) -> io.NodeOutput:
        """Sweep."""
        shown = {"steps": steps, "rank": rank, "alpha": alpha, "batch_size": batch_size, "seed": seed}
        sweep = host.find_learning_rate(
            model,
            clip,
            vae,
            dataset,
            TrainingConfig.from_mapping({**UNTOUCHED, "weighting": weighting, **(options or {}), **shown}),
            lowest=lowest_rate,
            highest=highest_rate,
            probes=probes,
            node_id=cls.hidden.unique_id,
        )
        plot = sweep_plot(sweep)
        return io.NodeOutput(sweep.suggested, plot, sweep_table(sweep), ui=ui.PreviewImage(plot, cls=cls))
