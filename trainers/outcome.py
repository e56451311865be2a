"""What a training run tells its caller: on its way, at its end, and where it could not go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..lora.delta import LowRankDelta
from .config import TrainingConfig
from .ranks import LayerRank


def _no_progress(step: int, steps: int, loss: float, seconds_left: float) -> None:
    """Ignore it."""


def _never() -> bool:
    return False


def _no_sample(step: int) -> None:
    """Ignore it."""


def _no_record(record: Mapping[str, float]) -> None:
    """Ignore it."""


@dataclass(frozen=True)
class Callbacks:
    """What the loop tells and asks its caller.

    Attributes:
        progress: (steps done, steps in all, loss of the last known step, seconds left).
        cancelled: asked before each batch; True stops the run.
        sample: called after step k every ``sample_every`` steps, with the adapters in place and gradients off.
        record: gets each line of the log, those before a resume first.
    """

    progress: Callable[[int, int, float, float], None] = _no_progress
    cancelled: Callable[[], bool] = _never
    sample: Callable[[int], None] = _no_sample
    record: Callable[[Mapping[str, float]], None] = _no_record


@dataclass(frozen=True)
class TrainingResult:
    """What was learnt.

    Attributes:
        deltas: canonical layer name -> ΔW, float32 on the CPU; empty where the algorithm's is not of low rank.
        losses: one a step, from the first step on (those before a resume included).
        steps_done: updates made.
        folder: the run's folder.
        config: the configuration it was trained with.
        records: the lines of the log.
        tensors: what was learnt in the host's naming, whatever the algorithm, float32 on the CPU.
        seconds_a_step: of this run, its samples and checkpoints included.
        notes: what was done for memory and speed, in words.
        ranks: canonical layer name -> its rank, where the algorithm adapts them.
    """

    deltas: Mapping[str, LowRankDelta]
    losses: tuple[float, ...]
    steps_done: int
    folder: Path
    config: TrainingConfig
    records: tuple[Mapping[str, float], ...] = ()
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    seconds_a_step: float = 0.0
    notes: tuple[str, ...] = ()
    ranks: Mapping[str, LayerRank] = field(default_factory=dict)


class TrainingCancelled(Exception):
    """The caller cancelled. A checkpoint was written; ``result`` is what was learnt so far."""

    def __init__(self, result: TrainingResult) -> None:
        super().__init__(f"Training was cancelled after {result.steps_done} of {result.config.steps} steps.")
        self.result = result


class TrainingDiverged(ValueError):
    """The loss or the adapter is no finite number any more."""


class NothingLearned(ValueError):
    """All steps were made, and the adapter still changes nothing."""
