"""The training loop of a LoRA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..lora.delta import LowRankDelta
from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Denoiser


def _no_progress(step: int, steps: int, loss: float, seconds_left: float) -> None:
    """Ignore it."""


def _never() -> bool:
    return False


def _no_sample(step: int) -> None:
    """Ignore it."""


@dataclass(frozen=True)
class Callbacks:
    """What the loop tells and asks its caller.

    Attributes:
        progress: (steps done, steps in all, loss of the last known step, seconds left).
        cancelled: asked before each batch; True stops the run.
        sample: called after step k every ``sample_every`` steps, with the adapters in place and gradients off.
    """

    progress: Callable[[int, int, float, float], None] = _no_progress
    cancelled: Callable[[], bool] = _never
    sample: Callable[[int], None] = _no_sample


@dataclass(frozen=True)
class TrainingResult:
    """What was learnt.

    Attributes:
        deltas: canonical layer name -> ΔW, float32 on the CPU.
        losses: one a step, from the first step on (those before a resume included).
        steps_done: updates made.
        folder: the run's folder.
        config: the configuration it was trained with.
    """

    deltas: Mapping[str, LowRankDelta]
    losses: tuple[float, ...]
    steps_done: int
    folder: Path
    config: TrainingConfig


class TrainingCancelled(Exception):
    """The caller cancelled. A checkpoint was written; ``result`` is what was learnt so far."""

    def __init__(self, result: TrainingResult) -> None:
        super().__init__(f"Training was cancelled after {result.steps_done} of {result.config.steps} steps.")
        self.result = result


class TrainingDiverged(ValueError):
    """The loss or the adapter is no finite number any more."""


def train(
    denoiser: Denoiser,
    data: TrainingSet,
    config: TrainingConfig,
    folder: Path,
    callbacks: Callbacks | None = None,
    resume_from: Path | None = None,
) -> TrainingResult:
    """Train LoRA adapters inside ``denoiser.module``, which is as it was when this returns or raises.

    Args:
        denoiser: the model.
        data: cached examples; those of one batch have one shape.
        config: validated here.
        folder: run folder; gets config.json, log.jsonl and checkpoints/step-000100/.
        callbacks: progress, cancel and samples.
        resume_from: a checkpoint folder, or a run folder (its last checkpoint), to go on from bit for bit.

    Raises:
        TrainingCancelled: carries the result so far.
        TrainingDiverged: loss or adapter became NaN or infinite; the last good checkpoint is kept.
        ValueError: configuration, data or checkpoint do not fit; says which and what to do.
    """
    raise NotImplementedError
