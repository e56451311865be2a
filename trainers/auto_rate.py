"""A learning rate from the sizes of what is adapted and the length of the run, for who does not want to choose one.

The rate at which Adam moves what a network computes, and with it the largest one that is safe, falls with the width n
of the adapted layers as 1/n where both factors of a LoRA have one rate (Hayou et al. 2024, LoRA+, arXiv 2402.12354),
and with their number N as 1/√N (Yang et al. 2023, Depth-μP, arXiv 2310.02244). Where gradients are mostly noise, as
with one picture at one noise level a step, K of Adam's steps lead about √K times as far as one, so that runs of all
lengths go the same way when the rate falls as 1/√K. So

    η = 1e-4 · (1280/n) · √(560/N) · √(1000/K), and 1e-4 at least,

which in 1000 steps is the 1e-4 that SDXL's attention layers (n = 1280, N = 560) are trained with by most. SD1.5's
(n = 768, N = 128) get 3.5e-4, SD3's (n = 1536, N = 95) 2e-4, layers as wide as Flux' the 1e-4; in 500 steps 1.4 times
that. benchmarks/README.md has what it is worth.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from torch import nn

from .config import TrainingConfig
from .targets import PREFIX, matched_layers

log = logging.getLogger(__name__)

ANCHOR = 1e-4
WIDTH = 1280
LAYERS = 560
STEPS = 1000
HIGHEST = 2e-3

_FACTOR = {"lion": 1 / 3}
"""Of the rate, where an optimizer's steps are larger than AdamW's: Lion's are ±1 (Chen et al. 2023, §5: 3–10 less)."""


def width(layer: nn.Module) -> int:
    """How many numbers one output is a sum of. Raises ValueError for layers that are neither Linear nor Conv2d."""
    if isinstance(layer, nn.Linear):
        return layer.in_features
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    raise ValueError(f"The width of a {type(layer).__name__} is not known; choose a learning rate yourself.")


def automatic_rate(layers: Sequence[nn.Module], optimizer: str = "adamw", steps: int = STEPS) -> float:
    """The learning rate for these adapted layers, two digits of it.

    Args:
        layers: those that get an adapter, at least one.
        optimizer: one of ``trainers.config.OPTIMIZERS``.
        steps: of the whole run.

    Raises:
        ValueError: no layers, or SGD, whose rate depends on the loss.
    """
    if optimizer == "prodigy":
        return 1.0  # finds it itself
    if optimizer == "sgd":
        raise ValueError("With sgd there is no automatic learning rate: choose one, or another optimizer.")
    if not layers:
        raise ValueError("There are no layers to choose a learning rate for.")
    rate = ANCHOR * WIDTH / median(map(width, layers)) * math.sqrt(LAYERS / len(layers)) * math.sqrt(STEPS / steps)
    return float(f"{min(max(rate, ANCHOR), HIGHEST) * _FACTOR.get(optimizer, 1.0):.2g}")


def with_rate(config: TrainingConfig, module: nn.Module) -> TrainingConfig:
    """The configuration with a learning rate above 0: its own, or the automatic one of what it targets in ``module``.

    Raises:
        ValueError: see :func:`automatic_rate`; or the targets match nothing.
    """
    if config.learning_rate > 0:
        return config
    names = matched_layers({PREFIX: module}, config.targets, config.target_pattern)
    layers = [module.get_submodule(name.removeprefix(PREFIX)) for name in names]
    rate = automatic_rate(layers, config.optimizer, config.steps)
    log.info("Likeness: learning rate %g, for %d layers of this size and %d steps", rate, len(names), config.steps)
    return replace(config, learning_rate=rate)
