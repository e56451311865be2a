"""LikenessTrainingOptions: everything about a training run that most users leave as it is."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..trainers.config import OPTIMIZERS, PRECISIONS, SCHEDULES, TARGETS, TIMESTEP_SAMPLINGS, TrainingConfig
from . import host
from .types import TrainingOptions

UNTOUCHED = {"targets": "all", "schedule": "cosine"}
"""What Train LoRA does where no options say otherwise; benchmarks/README.md has why."""


class LikenessTrainingOptions(io.ComfyNode):
    """Options of a training run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = TrainingConfig.from_mapping(UNTOUCHED)
        return io.Schema(
            node_id="LikenessTrainingOptions",
            display_name="Training Options (Likeness)",
            category="Likeness/trainers",
            is_output_node=True,  # or its text is gone when the page is loaded again
            description="Options of Train LoRA: which layers learn, optimizer, schedule, precision, noise, checkpoints."
            " Wire a model to see how many layers the choice of targets meets.",
            inputs=[
                io.Combo.Input(
                    "targets",
                    options=list(TARGETS),
                    default=standard.targets,
                    tooltip="Which layers learn. all: every linear and convolution layer; learns in the fewest steps. "
                    "attention: a smaller file, less memory, forgets less. attention+feed-forward: between them. "
                    "custom: those that target_pattern matches. decoder: all of a UNet's middle and output blocks, in "
                    "shorter steps; in models without such, all.",
                ),
                io.String.Input(
                    "target_pattern",
                    default=standard.target_pattern,
                    tooltip="With custom targets: a regular expression searched in the layers' names, such as "
                    r"attn2\.to_[kv]$ or output_blocks\.[3-5]\.",
                ),
                io.Combo.Input(
                    "optimizer",
                    options=list(OPTIMIZERS),
                    default=standard.optimizer,
                    tooltip="adamw is the usual one; adafactor and adamw-8bit keep less memory; lion wants a third of "
                    "the learning rate; prodigy finds it itself (set learning_rate to 1); schedule-free wants the "
                    "schedule constant. adamw-8bit, prodigy and schedule-free need a package, which their error names.",
                ),
                io.Float.Input(
                    "weight_decay",
                    default=standard.weight_decay,
                    min=0.0,
                    max=10.0,
                    step=0.001,
                    round=1e-6,
                    tooltip="Pulls the LoRA towards zero a little at each step.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default=standard.schedule,
                    tooltip="How the learning rate goes on after the warm-up: constant, or falling to zero.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=standard.warmup_steps,
                    min=0,
                    max=100_000,
                    tooltip="Steps in which the learning rate rises from zero to its value.",
                ),
                io.Int.Input(
                    "gradient_accumulation",
                    default=standard.gradient_accumulation,
                    min=1,
                    max=1024,
                    tooltip="Batches a step. Acts like a batch so many times larger, without its memory.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=standard.max_grad_norm,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    tooltip="Larger gradients are scaled down to this norm. 0: never.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=standard.gradient_checkpointing,
                    tooltip="Much less memory, about a third slower. Turn it on when memory runs out.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default=standard.precision,
                    tooltip="What the base model computes in. The LoRA itself is always kept in fp32.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=standard.min_snr_gamma,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="Min-SNR loss weighting: 5 is usual, 0 turns it off.",
                ),
                io.Combo.Input(
                    "timestep_sampling",
                    options=list(TIMESTEP_SAMPLINGS),
                    default=standard.timestep_sampling,
                    tooltip="How noise levels are drawn. uniform for SD and SDXL; logit-normal or shift for "
                    "SD3, Flux and other flow models.",
                ),
                io.Float.Input(
                    "noise_offset",
                    default=standard.noise_offset,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Helps very dark and very bright pictures: 0.05 to 0.1 is usual, 0 turns it off.",
                ),
                io.Float.Input(
                    "caption_dropout",
                    default=standard.caption_dropout,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of pictures trained without their caption.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=standard.checkpoint_every,
                    min=0,
                    max=1_000_000,
                    tooltip="Steps between checkpoints to resume from. 0: only at the end, on cancel and on error.",
                ),
                io.Int.Input(
                    "keep_last",
                    default=standard.keep_last,
                    min=0,
                    max=10_000,
                    tooltip="So many checkpoints are kept, older ones are deleted. 0: all are kept.",
                ),
                TrainingOptions.Input(
                    "options",
                    optional=True,
                    tooltip="Options to start from. Everything shown on this node overrides them.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="Wire the model to see in the report which layers the targets meet.",
                ),
                io.Float.Input(
                    "ema_decay",
                    default=standard.ema_decay,
                    min=0.0,
                    max=0.99999,
                    step=0.001,
                    round=1e-6,
                    optional=True,
                    tooltip="Keep a moving average of the LoRA and use that: calmer than the last step. 0.99 for some "
                    "hundreds of steps, 0.999 for thousands, 0 turns it off.",
                ),
            ],
            outputs=[
                TrainingOptions.Output(display_name="options", tooltip="For the options input of Train LoRA."),
                io.String.Output(display_name="report", tooltip="What was chosen, and the count of matched layers."),
            ],
        )

    @classmethod
    def execute(cls, options: dict[str, Any] | None = None, model: Any = None, **shown: Any) -> io.NodeOutput:
        """Lay what the node shows over the options it was given."""
        chosen = {**(options or {}), **shown}
        config = TrainingConfig.from_mapping(chosen)
        report = host.describe_options(config, model)
        return io.NodeOutput(chosen, report, ui=ui.PreviewText(report))
