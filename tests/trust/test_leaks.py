"""Training again and again in one process: nothing is kept that is not needed."""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import torch

from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.outcome import Callbacks, TrainingCancelled

RUN = TrainingConfig(steps=300, rank=2, alpha=1.0, learning_rate=1e-3, targets="all", batch_size=2, seed=5)


def alive() -> int:
    """How many tensors there are."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when they are asked what they are
        return sum(1 for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))


def with_(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{**RUN.__dict__, **changes})


def test_no_tensor_is_kept_from_step_to_step(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if 300 steps, with checkpoints and samples, hold one tensor more at the end than at the 20th."""
    counts: dict[int, int] = {}

    def progress(step: int, *_: Any) -> None:
        if step in (20, 21, 100, 200, 299):
            counts[step] = alive()

    config = with_(checkpoint_every=50, sample_every=50, gradient_checkpointing=True, dropout=0.1)
    train(toy(), data(flip=True), config, tmp_path, Callbacks(progress=progress))
    assert len(counts) == 5 and max(counts.values()) - min(counts.values()) <= 2, counts  # of one batch or another


def test_no_tensor_is_kept_from_run_to_run(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a run that ended well, was cancelled or failed leaves a tensor behind: 30 more runs must leave none."""
    denoiser, examples = toy(), data(flip=True)

    def one(number: int) -> None:
        folder = tmp_path / str(number)
        how = number % 3
        asked = iter(range(100))
        plain = denoiser.denoise
        try:
            if how == 2:
                denoiser.denoise = lambda *arguments: plain(*arguments) * float("nan")
            callbacks = Callbacks(cancelled=lambda: how == 1 and next(asked) > 1)
            train(denoiser, examples, with_(steps=4), folder, callbacks)
            assert how == 0
        except (TrainingCancelled, ValueError) as error:
            assert how == (1 if isinstance(error, TrainingCancelled) else 2)
        finally:
            if how == 2:
                del denoiser.denoise  # the class's own is there again

    for number in range(6):
        one(number)
    denoiser.seen.clear()
    before = alive()
    for number in range(6, 36):
        one(number)
    denoiser.seen.clear()
    assert alive() <= before


def test_the_log_is_closed(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if each run keeps a file open: the host would run out of them."""
    files = Path("/proc/self/fd")
    if not files.is_dir():
        return
    train(toy(), data(), with_(steps=2), tmp_path / "0")
    before = len(list(files.iterdir()))
    for number in range(1, 12):
        train(toy(), data(), with_(steps=2), tmp_path / str(number))
        lines = (tmp_path / str(number) / "log.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert len(list(files.iterdir())) <= before
