"""Which learning rate? A short run whose rate grows at each step, and the loss it has at each."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..lora.canvas import canvas
from .batches import Batches
from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Denoiser
from .loop import train
from .objectives import diffusion_loss
from .outcome import Callbacks, TrainingCancelled, TrainingDiverged
from .randomness import generator

KERNEL = (1.0, 2.0, 3.0, 2.0, 1.0)
"""Weights of the neighbours in the smoothed losses. Even to both sides: a running average lags, and the rate that it
shows as the best is some steps too high."""

EXPLODED = 1.5
"""The sweep ends where two losses in a row are so many times the first one."""


@dataclass(frozen=True)
class RateSweep:
    """What a sweep saw.

    Attributes:
        rates: of each step, ascending; fewer than were asked for where the loss exploded.
        losses: after each step, on the same pictures, noise and noise levels.
        smoothed: their local mean.
        suggested: the rate to train with, see :func:`suggested_rate`.
        exploded: whether the sweep ended early.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggested: float
    exploded: bool


def find_rate(
    denoiser: Denoiser,
    data: TrainingSet,
    config: TrainingConfig,
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    probes: int = 4,
    callbacks: Callbacks | None = None,
) -> RateSweep:
    """The learning rate range test (Smith 2015, arXiv 1506.01186, §3.3), with a rate that grows by a constant factor.

    One run of ``config.steps`` steps, trained as any other; the model is as it was afterwards. The loss is not that of
    the step's own batch, which is mostly the luck of its noise levels, but of ``probes`` batches that stay the same.

    Args:
        config: as for :func:`.loop.train`; learning rate, schedule, warm-up, samples and checkpoints are not heeded.
        lowest: of the rates.
        highest: of the rates.
        probes: batches that are measured after each step; more is smoother and slower.
        callbacks: progress and cancel.

    Raises:
        TrainingCancelled: the caller cancelled.
        ValueError: see :func:`.loop.train`; or the loss fell at no rate.
    """
    if not 0 < lowest < highest or not math.isfinite(highest):
        raise ValueError(f"The rates go from {lowest:g} to {highest:g}; expected 0 < lowest < highest.")
    if config.optimizer == "prodigy":
        raise ValueError("The optimizer 'prodigy' finds the rate itself: there is nothing to search. Train with 1.")
    if config.steps < 10:
        raise ValueError(f"A sweep of {config.steps} steps shows nothing; expected 10 or more, 100 is usual.")
    rates = np.geomspace(lowest, highest, config.steps).tolist()
    told = callbacks or Callbacks()
    quiet = replace(
        config,
        learning_rate=highest,
        schedule="constant",
        warmup_steps=0,
        text_encoder_learning_rate=config.text_encoder_learning_rate / config.learning_rate * highest,
        ema_decay=0.0,
        checkpoint_every=0,
        sample_every=1,
    )
    measure = _probe(denoiser, data, quiet, probes)
    losses: list[float] = []

    def measured(step: int) -> None:
        losses.append(measure())
        if _exploded(losses):
            raise _Enough

    exploded = False
    with tempfile.TemporaryDirectory(prefix="likeness-rates-") as folder:
        watched = replace(told, sample=measured, record=Callbacks().record)
        try:
            train(denoiser, data, quiet, Path(folder), watched, rate=lambda step: rates[step])
        except (_Enough, TrainingDiverged):
            exploded = True
    kept = rates[: len(losses)]
    smooth = local_mean(losses)
    if exploded and len(losses) < 3:
        raise ValueError(f"The loss exploded at once, at a learning rate of {rates[0]:g}. Begin with a lower one.")
    return RateSweep(tuple(kept), tuple(losses), tuple(smooth), suggested_rate(kept, smooth), exploded)


class _Enough(Exception):
    """The loss exploded: nothing is learnt from higher rates."""


def _exploded(losses: Sequence[float]) -> bool:
    return not math.isfinite(losses[-1]) or min(losses[-2:]) > EXPLODED * losses[0]


def _probe(denoiser: Denoiser, data: TrainingSet, config: TrainingConfig, count: int) -> Callable[[], float]:
    """The mean loss of batches that are always the same."""
    kind = denoiser.parameterisation, getattr(denoiser, "patch_size", 2)
    source = Batches(data, denoiser.sigmas, denoiser.device, config, *kind)
    batches = [source.draw(number, generator(config.seed, "probe", number)) for number in range(count)]
    noisy = [denoiser.noise_scaling(batch.sigma, batch.noise, batch.latents) for batch in batches]

    def measure() -> float:
        total: list[Tensor] = [
            diffusion_loss(
                denoiser.denoise(seen, batch.sigma, batch.conds),
                batch.target,
                batch.sigma,
                denoiser.parameterisation,
                mask=batch.mask,
                factor=batch.factor,
                huber_c=batch.huber_c,
            )
            for seen, batch in zip(noisy, batches, strict=True)
        ]
        return float(torch.stack(total).mean())

    return measure


def local_mean(losses: Sequence[float]) -> list[float]:
    """Each loss with its neighbours, weighed by :data:`KERNEL`; fewer of them at the ends."""
    half = len(KERNEL) // 2
    found = []
    for step in range(len(losses)):
        there = [
            (KERNEL[half + side], step + side) for side in range(-half, half + 1) if 0 <= step + side < len(losses)
        ]
        found.append(sum(weight * losses[at] for weight, at in there) / sum(weight for weight, _ in there))
    return found


def suggested_rate(rates: Sequence[float], smoothed: Sequence[float]) -> float:
    """The rate at which the smoothed loss falls most steeply, per factor of the rate, before it is lowest.

    Above it training still gets better, but is near the edge; far below it, it is only slow.

    Raises:
        ValueError: the loss does not fall.
    """
    losses = np.asarray([loss for loss in smoothed if math.isfinite(loss)])
    lowest = int(np.argmin(losses)) if len(losses) else 0
    if lowest < 2:
        raise ValueError(
            "The loss fell at none of the learning rates that were tried. Begin with a lower one, end with a higher "
            "one, or make more steps."
        )
    slopes = np.gradient(losses[: lowest + 1], np.log(np.asarray(rates[: lowest + 1])))
    return float(rates[int(np.argmin(slopes))])


def sweep_table(sweep: RateSweep) -> str:
    """A line a step: rate, loss, smoothed loss, with tabs between."""
    lines = ["learning_rate\tloss\tsmoothed"]
    steps = zip(sweep.rates, sweep.losses, sweep.smoothed, strict=True)
    lines += [f"{rate:.4g}\t{loss:.6g}\t{smooth:.6g}" for rate, loss, smooth in steps]
    return "\n".join([*lines, f"suggested: {sweep.suggested:.3g}"])


def sweep_plot(sweep: RateSweep, width: int = 768, height: int = 448) -> Tensor:
    """Losses over rates.

    Returns:
        (1, height, width, 3) float32 in [0, 1], an IMAGE of the host.
    """
    figure, image = canvas(width, height)
    axes = figure.add_subplot()
    axes.plot(sweep.rates, sweep.losses, color="#9db8d9", linewidth=0.8, label="each step")
    axes.plot(sweep.rates, sweep.smoothed, color="#1f4e8c", linewidth=2, label="smoothed")
    axes.axvline(sweep.suggested, color="#c0392b", linestyle="--", label=f"suggested: {sweep.suggested:.2g}")
    axes.set_xscale("log")
    finite = [loss for loss in sweep.smoothed if math.isfinite(loss)]
    axes.set_ylim(0.9 * min(finite), 1.1 * min(max(finite), EXPLODED * finite[0]))
    axes.set_title("Learning rate finder")
    axes.set_xlabel("learning rate")
    axes.set_ylabel("loss on the same noise")
    axes.legend(loc="upper left", frameon=False)
    axes.grid(alpha=0.25)
    return image()


__all__ = ["RateSweep", "TrainingCancelled", "find_rate", "suggested_rate", "sweep_plot", "sweep_table"]
