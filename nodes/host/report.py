"""What the options node shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...lora.layer_patterns import first_match
from ...trainers.config import TrainingConfig
from ...trainers.estimate import Estimate
from ...trainers.layer_rules import parse_rules
from ...trainers.outcome import TrainingResult
from ...trainers.targets import PREFIX, adaptable_layers, matched_layers

SHOWN = 6


def describe_adapter(config: TrainingConfig, layers: Sequence[str] | None) -> list[str]:
    """The algorithm, and a line a rule; with ``layers`` (those that the targets meet), how many each decides."""
    plain = config.algorithm in ("lora", "dora")
    lines = [
        f"algorithm {config.algorithm}"
        + (f", init {config.init}" if plain else "")
        + (", rank-stabilised" if config.rank_stabilised else "")
        + (f", dropout {config.dropout:g}" if config.dropout else "")
        + (f", LoRA+ ratio {config.loraplus_ratio:g}" if config.loraplus_ratio != 1 else "")
    ]
    rules = parse_rules(config.layer_rules)
    deciding = [first_match(name, rules) for name in layers or ()]
    for rule in rules:
        if rule.rank == 0:
            what = "left out"
        else:
            parts = [
                "" if rule.rank is None else f"rank {rule.rank}",
                "" if rule.alpha is None else f"alpha {rule.alpha:g}",
                "" if rule.rate == 1 else f"learning rate × {rule.rate:g}",
            ]
            what = ", ".join(part for part in parts if part) or "as everywhere"
        met = "" if layers is None else f" ({deciding.count(rule)} of {len(layers)} layers)"
        lines.append(f"line {rule.line}: {rule.pattern}: {what}{met}")
    return lines


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
        lines[1:1] = describe_adapter(config, None)
        return "\n".join([f"targets: {config.targets} (wire a model to see the layers)", *lines])
    modules = {PREFIX: model.model.diffusion_model}
    names = matched_layers(modules, config.targets, config.target_pattern)
    lines[1:1] = describe_adapter(config, names)
    lines.insert(0, f"targets: {config.targets}, {len(names)} of {len(adaptable_layers(modules))} layers learn")
    some = [*names[:SHOWN], f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else list(names)
    return "\n".join([*lines, *some])


def describe_run(result: TrainingResult, estimate: Estimate | None, peak: str) -> str:
    """What a run took.

    Args:
        peak: the line of :class:`.memory.PeakMemory`.
    """
    size = sum(tensor.numel() for name, tensor in result.tensors.items() if not name.endswith(".alpha"))
    layers = {name.rsplit(".lora_", 1)[0] for name in result.tensors if ".lora_" in name} or set(result.deltas)
    lines = [
        f"{result.steps_done} steps, {result.seconds_a_step:.3f} seconds a step",
        f"{size:,} trained numbers" + (f" in {len(layers)} layers" if layers else ""),
        peak,
        "no estimate of memory for this model" if estimate is None else estimate.line(result.config),
        *result.notes,
    ]
    return "\n".join(lines)
