"""What the options node shows."""

from __future__ import annotations

from typing import Any

from ...trainers.config import TrainingConfig
from ...trainers.targets import PREFIX, adaptable_layers, matched_layers

SHOWN = 6


def describe_options(config: TrainingConfig, model: Any | None) -> str:
    """The choice in words, and which layers of ``model`` (the host's MODEL, or None) learn.

    Raises:
        ValueError: no layer of the model matches the targets.
    """
    every = f"every {config.checkpoint_every} steps" if config.checkpoint_every else "at the end"
    lines = [
        f"{config.optimizer}, {config.schedule} schedule"
        + (f" after {config.warmup_steps} steps of warm-up" if config.warmup_steps else "")
        + f", weight decay {config.weight_decay:g}",
        f"precision {config.precision}, gradient checkpointing {'on' if config.gradient_checkpointing else 'off'}, "
        f"{config.gradient_accumulation} batch{'es' if config.gradient_accumulation > 1 else ''} a step",
        f"checkpoints {every}, keeping {'all' if not config.keep_last else f'the last {config.keep_last}'}",
    ]
    if model is None:
        return "\n".join([f"targets: {config.targets} (wire a model to see the layers)", *lines])
    modules = {PREFIX: model.model.diffusion_model}
    names = matched_layers(modules, config.targets, config.target_pattern)
    lines.insert(0, f"targets: {config.targets}, {len(names)} of {len(adaptable_layers(modules))} layers learn")
    some = [*names[:SHOWN], f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else list(names)
    return "\n".join([*lines, *some])
