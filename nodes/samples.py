"""LikenessSamplePrompts: what to draw while training."""

from __future__ import annotations

from comfy_api.latest import io

from .rows import sampling_inputs, seed_input
from .types import SamplePrompts, Samples


class LikenessSamplePrompts(io.ComfyNode):
    """Prompts to draw every N steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessSamplePrompts",
            display_name="Sample Prompts (Likeness)",
            category="Likeness/trainers",
            description="Pictures to draw while training: shown on the training node and kept in the run's samples "
            "folder. Use the trigger word in them, as in the captions.",
            inputs=[
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="a picture of sks subject",
                    tooltip="One prompt a line; each becomes one picture of the grid. {trigger} and {class} stand for "
                    "the dataset's words; with several subjects, each gets a row. Empty lines are left out.",
                ),
                io.String.Input("negative", default="", tooltip="The negative prompt of all of them."),
                seed_input("Seed of the noise. The same at each step, so that pictures of a run can be compared."),
                io.Int.Input("every", default=100, min=1, max=1_000_000, tooltip="Draw after every N training steps."),
                *sampling_inputs(),
                io.Int.Input("width", default=512, min=16, max=16384, step=8, tooltip="Width in pixels."),
                io.Int.Input("height", default=512, min=16, max=16384, step=8, tooltip="Height in pixels."),
            ],
            outputs=[
                SamplePrompts.Output(display_name="samples", tooltip="For the samples input of Train LoRA."),
            ],
        )

    @classmethod
    def execute(
        cls,
        prompts: str,
        negative: str,
        seed: int,
        every: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        width: int,
        height: int,
    ) -> io.NodeOutput:
        """Gather the inputs."""
        lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
        if not lines:
            raise ValueError("There is no prompt to draw: write a line into prompts, or disconnect the node.")
        return io.NodeOutput(Samples(lines, negative, seed, every, steps, cfg, sampler_name, scheduler, width, height))
