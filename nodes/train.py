"""LikenessTrainLoRA: train a LoRA on the model that is wired in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..trainers.config import TrainingConfig
from . import host
from .options import UNTOUCHED
from .rows import alpha_input, seed_input, weighting_input
from .types import Dataset, LoraModel, Prior, PriorKeeping, SamplePrompts, Samples, TrainingOptions


def sockets(size: Sequence[io.Input]) -> list[io.Input]:
    """What is asked of every run; ``size`` stands between the learning rate and the batch."""
    return [
        io.Model.Input("model", tooltip="The model to teach. LoRAs already applied stay in force."),
        io.Clip.Input("clip", tooltip="Its text encoder. Trained only with Text Encoder Options (Likeness)."),
        io.Vae.Input("vae", tooltip="Its VAE, used once for the pictures."),
        Dataset.Input("dataset", tooltip="The pictures, from Dataset (Likeness)."),
        io.Int.Input(
            "steps",
            default=500,
            min=1,
            max=1_000_000,
            tooltip="Training steps in all, those of a resumed run included. 100 a picture is a good start.",
        ),
        io.Float.Input(
            "learning_rate",
            default=0.0,
            min=0.0,
            max=1e6,
            step=1e-6,
            round=1e-10,
            tooltip="0: chosen by the size of the model's layers and the steps: in 1000, 1e-4 for SDXL and 3.5e-4 for "
            "SD1.5. Lower it when the loss grows or pictures break.",
        ),
        *size,
        io.Int.Input("batch_size", default=1, min=1, max=1024, tooltip="Pictures a batch; more needs memory."),
        seed_input("Decides all that is random. The same seed gives the same LoRA."),
        TrainingOptions.Input("options", optional=True, tooltip="From Training Options (Likeness)."),
        SamplePrompts.Input("samples", optional=True, tooltip="From Sample Prompts (Likeness)."),
        io.String.Input(
            "run_name",
            optional=True,
            default="",
            tooltip="Name of the run's folder. Empty: trigger word and time. A taken name gets a number.",
        ),
        io.String.Input(
            "resume_from",
            optional=True,
            default="",
            tooltip="A run's name, or the path of its folder or of one checkpoint: goes on from there exactly.",
        ),
        PriorKeeping.Input(
            "prior",
            optional=True,
            tooltip="From Prior Preservation (Likeness): keeps the model from forgetting other subjects.",
        ),
        weighting_input(
            "How much each noise level counts. auto: debiased for models that predict noise (SD1.5, "
            "SDXL), which learns a subject in fewer steps; none for others. none: as the model was made. "
            "Loss and Noise Options, and min-SNR, override it."
        ),
    ]


def outlets() -> list[io.Output]:
    """What every run gives."""
    return [
        io.Model.Output(display_name="model", tooltip="The model with the LoRA applied at strength 1."),
        LoraModel.Output(display_name="lora", tooltip="The LoRA, for Save LoRA (Likeness)."),
        io.Image.Output(display_name="loss_curve", tooltip="Loss over steps, smoothed and raw."),
        io.String.Output(display_name="run_folder", tooltip="Where log, samples and checkpoints are."),
        io.Clip.Output(
            display_name="clip", tooltip="The text encoder with the LoRA applied, where it was trained, too."
        ),
        io.String.Output(
            display_name="report",
            tooltip="Memory taken and estimated, time of a step, size of what was trained.",
        ),
    ]


class LikenessTrainLoRA(io.ComfyNode):
    """Teach the model a subject."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessTrainLoRA",
            display_name="Train LoRA (Likeness)",
            category="Likeness/trainers",
            description="Trains a LoRA on your pictures, inside the loaded model. Cancel keeps a checkpoint to resume "
            "from. Everything about the run is kept in the output folder, below likeness/.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=sockets(
                [
                    io.Int.Input(
                        "rank", default=16, min=1, max=4096, tooltip="Capacity of the LoRA, and its file size."
                    ),
                    alpha_input("The LoRA is scaled by alpha / rank: equal to rank means 1."),
                ]
            ),
            outputs=outlets(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        dataset: Any,
        steps: int,
        learning_rate: float,
        rank: int,
        alpha: float,
        batch_size: int,
        seed: int,
        options: dict[str, Any] | None = None,
        samples: Samples | None = None,
        run_name: str = "",
        resume_from: str = "",
        prior: Prior | None = None,
        weighting: str = "none",
    ) -> io.NodeOutput:
        """Train. Prompts from before ``weighting`` was an input do not name it, and are trained as they were."""
        shown = {
            "steps": steps,
            "learning_rate": learning_rate,
            "rank": rank,
            "alpha": alpha,
            "batch_size": batch_size,
            "seed": seed,
            "sample_every": samples.every if samples else 0,
        }
        config = TrainingConfig.from_mapping({**UNTOUCHED, "weighting": weighting, **(options or {}), **shown})
        trained = host.train_lora(
            model,
            clip,
            vae,
            dataset,
            config,
            samples=samples,
            prior=prior,
            run_name=run_name,
            resume_from=resume_from,
            node_id=cls.hidden.unique_id,
        )
        return io.NodeOutput(*trained.outputs())
