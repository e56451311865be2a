"""Checkpoints that resume bit for bit: safetensors and JSON only, whole or not there at all.

``checkpoints/step-000100/`` holds

- ``lora.safetensors``: the adapters in the host's naming, an ordinary LoRA that can be used at once;
- ``optimizer.safetensors``: the optimizer's state;
- ``average.safetensors``, where a moving average is kept: it and the adapters that are trained, exactly; then
  ``lora.safetensors`` is the average;
- ``ranks.safetensors``, where ranks adapt: the factors as they are trained, exactly, and what decides on their ranks;
- ``state.json``: the step, all losses so far, the configuration.

Random numbers need no state, see :mod:`.randomness`.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..lora.atomic import sync_folder, write_whole
from ..lora.files import read_safetensors, write_safetensors
from .config import TrainingConfig

log = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"step-(\d+)")
_AVERAGE = "average.safetensors"
_RANKS = "ranks.safetensors"
_FILES = ("lora.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds; see the module's head."""

    step: int
    losses: tuple[float, ...]
    config: TrainingConfig
    adapters: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    average: Mapping[str, Tensor] = field(default_factory=dict)
    ranks: Mapping[str, Tensor] = field(default_factory=dict)


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all."""
    write_whole(path, [text.encode()])


def checkpoints_in(folder: Path) -> list[Path]:
    """The whole checkpoints of a run folder, the earliest first."""
    found = [
        (int(match.group(1)), path)
        for path in (folder / "checkpoints").glob("step-*")
        if (match := _NAME.fullmatch(path.name)) and all((path / name).is_file() for name in _FILES)
    ]
    return [path for _, path in sorted(found)]


def place(folder: Path, step: int) -> Path:
    """Where a run folder keeps the checkpoint of a step."""
    return folder / "checkpoints" / f"step-{step:06d}"


def save(folder: Path, checkpoint: Checkpoint, keep_last: int) -> Path:
    """Write a checkpoint into a run folder, then delete all but the last ``keep_last`` (0 = keep all).

    Those of later steps are deleted too: they are of a branch that was left by resuming from before them, and the
    next resume must not take them for the last.

    Returns:
        The checkpoint's folder.
    """
    target = place(folder, checkpoint.step)
    partial = target.with_name(f".{target.name}.partial")
    _sweep(target.parent)
    partial.mkdir(parents=True)
    # A name with "format" tells other loaders whose tensors these are.
    write_safetensors(partial / "lora.safetensors", dict(checkpoint.adapters), {"format": "pt"})
    write_safetensors(partial / "optimizer.safetensors", dict(checkpoint.optimizer), {"format": "pt"})
    for name, tensors in ((_AVERAGE, checkpoint.average), (_RANKS, checkpoint.ranks)):
        if tensors:
            write_safetensors(partial / name, dict(tensors), {"format": "pt"})
    state = {
        "format": FORMAT,
        "step": checkpoint.step,
        "losses": list(checkpoint.losses),
        "config": asdict(checkpoint.config),
    }
    write_text(partial / "state.json", json.dumps(state))
    if target.exists():  # of an earlier run to the same step
        _discard(target)
    partial.rename(target)
    sync_folder(target.parent)
    there = checkpoints_in(folder)
    last = there.index(target) + 1
    for old in there[last:] + (there[: max(0, last - keep_last)] if keep_last else []):
        _discard(old)
    return target


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint at once: a process that dies meanwhile leaves none that lacks some of its files."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    try:
        checkpoint.rename(hidden)
    except OSError as why:  # Windows, while another program looks into it
        log.warning("the checkpoint %s cannot be deleted: %s", checkpoint, why)
        return
    shutil.rmtree(hidden, ignore_errors=True)


def _sweep(checkpoints: Path) -> None:
    """Delete what a run that was killed left half written or half deleted."""
    for path in checkpoints.glob(".step-*"):
        if path.name.endswith((".partial", ".old")):
            shutil.rmtree(path, ignore_errors=True)


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: a checkpoint's folder, or a run's (its last checkpoint).

    Raises:
        ValueError: nothing there to resume from, incomplete, damaged, or from a newer version.
    """
    folder = path
    if not _NAME.fullmatch(path.name) or not path.is_dir():
        if not path.is_dir():
            raise ValueError(
                f"There is no folder {path} to resume from. Give a run's folder or one of its checkpoints."
            )
        found = checkpoints_in(path)
        if not found:
            raise ValueError(f"{path} holds no checkpoint (checkpoints/step-…) to resume from.")
        folder = found[-1]
    if missing := [name for name in _FILES if not (folder / name).is_file()]:
        raise ValueError(f"The checkpoint {folder} is not complete: {', '.join(missing)} is missing.")
    try:
        state: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise ValueError(f"its format is {state['format']}, this version reads {FORMAT}")
        step, losses = state["step"], state["losses"]
        if type(step) is not int or step < 0 or len(losses) != step or not all(type(loss) is float for loss in losses):
            raise ValueError(f"it is of step {str(step)[:20]} and has not one loss for each step")
        adapters, optimizer, average, ranks = (
            read_safetensors(folder / name)[0] if name in _FILES or (folder / name).is_file() else {}
            for name in ("lora.safetensors", "optimizer.safetensors", _AVERAGE, _RANKS)
        )
        for name, tensor in (*adapters.items(), *optimizer.items(), *average.items(), *ranks.items()):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(f"its {name[:200]} holds NaN or infinity")
        return Checkpoint(
            step, tuple(losses), TrainingConfig.from_mapping(state["config"]), adapters, optimizer, average, ranks
        )
    except Exception as why:  # JSON that is too deep is a RecursionError, one of another shape a TypeError
        reason = f"{type(why).__name__}: {why}" if type(why) is not ValueError else str(why)
        raise ValueError(f"The checkpoint {folder} cannot be read: {reason[:500]}. Resume from another one.") from why


def check_resumable(checkpoint: Checkpoint, config: TrainingConfig) -> None:
    """Whether a run with ``config`` can go on from a checkpoint.

    Raises:
        ValueError: says what differs.
    """
    if checkpoint.step >= config.steps:
        raise ValueError(
            f"The checkpoint has {checkpoint.step} steps already and the run is to have {config.steps} in all. "
            f"Set steps above {checkpoint.step} to go on."
        )
    fixed: Sequence[str] = (
        *("rank", "alpha", "targets", "target_pattern", "optimizer", "adapter_dtype"),
        *("algorithm", "init", "rank_stabilised", "lokr_factor", "layer_rules", "loraplus_ratio"),
        *("text_encoders", "text_encoder_pattern"),
    )
    differing = [
        f"{name} is {getattr(config, name)!r}, the checkpoint's is {getattr(checkpoint.config, name)!r}"
        for name in fixed
        if getattr(config, name) != getattr(checkpoint.config, name)
    ]
    # The optimizer's state is kept by groups of one rate, and which layers share one depends on this.
    shares = [each.text_encoder_learning_rate / each.learning_rate for each in (config, checkpoint.config)]
    if (config.layer_rules or config.loraplus_ratio != 1) and shares[0] != shares[1]:
        differing.append(
            f"text_encoder_learning_rate is {shares[0]:g} of learning_rate, the checkpoint's {shares[1]:g}, and there "
            f"are {'layer_rules' if config.layer_rules else 'two rates (loraplus_ratio)'}"
        )
    if differing:
        raise ValueError(f"Cannot resume: {'; '.join(differing)}. Set them alike, or start a new run.")
