"""LikenessPriorPreservation: what the model is to keep while it learns."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .rows import sampling_inputs, seed_input
from .types import CLASS_PICTURES, GENERATED, PREDICTION, PRIOR_MODES, Dataset, Prior, PriorKeeping


class LikenessPriorPreservation(io.ComfyNode):
    """Keep other subjects from being forgotten."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessPriorPreservation",
            display_name="Prior Preservation (Likeness)",
            category="Likeness/trainers",
            description="Keeps the model from forgetting, while it learns your subject, what else it knew. Wire it to "
            "the prior input of Train LoRA.",
            inputs=[
                io.Combo.Input(
                    "mode",
                    options=list(PRIOR_MODES),
                    default=PREDICTION,
                    tooltip="prior prediction: the model is held to its own untrained answers. generated pictures: "
                    "DreamBooth with pictures that the model draws once. class pictures: DreamBooth with yours.",
                ),
                io.Float.Input(
                    "weight",
                    default=1.0,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    round=1e-6,
                    tooltip="How much keeping counts against learning. 1 is usual; 0 turns it off.",
                ),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="a picture of a {class}",
                    tooltip="What the model draws to remember, one prompt a line: your subject's class, and whatever "
                    "else must not change. {class} is the dataset's class noun. Empty, with prior prediction: your "
                    "own pictures, captioned with the class noun in the trigger word's place.",
                ),
                io.Int.Input(
                    "pictures",
                    default=32,
                    min=1,
                    max=10_000,
                    tooltip="So many are drawn, once: the next run with the same model and prompts finds them. "
                    "DreamBooth used 200 and more.",
                ),
                seed_input("Of the pictures that are drawn."),
                *sampling_inputs(),
                Dataset.Input(
                    "dataset",
                    optional=True,
                    tooltip="Your own class pictures, from Dataset (Likeness) with an empty trigger. Nothing is drawn "
                    "then.",
                ),
            ],
            outputs=[PriorKeeping.Output(display_name="prior", tooltip="For the prior input of Train LoRA.")],
        )

    @classmethod
    def execute(
        cls,
        mode: str,
        weight: float,
        prompts: str,
        pictures: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        dataset: Any = None,
    ) -> io.NodeOutput:
        """Gather the inputs."""
        lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
        if mode == CLASS_PICTURES and dataset is None:
            raise ValueError(f"The mode {mode!r} needs class pictures: wire a dataset, or choose another mode.")
        if mode == GENERATED and dataset is not None:
            raise ValueError(f"A dataset is wired, but the mode is {mode!r}: choose {CLASS_PICTURES!r}.")
        if mode == GENERATED and not lines:
            raise ValueError(f"The mode {mode!r} needs a prompt to draw: write a line into prompts.")
        return io.NodeOutput(Prior(mode, weight, lines, pictures, seed, steps, cfg, sampler_name, scheduler, dataset))
