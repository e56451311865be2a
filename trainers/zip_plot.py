"""The losses of a ZipLoRA run as a picture, each so that it can be compared with the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from ..lora.canvas import canvas
from .curve import smoothed
from .zip_lora import Zipped

_COLOURS = ("#1f4e8c", "#c98a1b", "#3b8f5a", "#b03a48", "#7a4fa3", "#2a8c8c", "#a05a2c", "#888888")


def normalised_terms(found: Zipped, names: Sequence[str]) -> Iterator[tuple[str, list[float]]]:
    """(name, a value a step) of each term of the loss.

    A concept's fit as a share of what its LoRA does to the model (0: the merge answers as that LoRA alone, 1: no better
    than without it), the overlap as a share of what it began with. Where no layer has two LoRAs there is no overlap.
    """
    for number, (name, fit) in enumerate(zip(names, found.fits, strict=True), 1):
        yield name, [record[f"fit_{number}"] / max(fit.base, 1e-30) for record in found.records]
    first = found.records[0]["overlap"] if found.records else 0.0
    if first > 0:
        yield "overlap", [record["overlap"] / first for record in found.records]


def zip_curves(found: Zipped, names: Sequence[str], width: int = 1024, height: int = 512) -> Tensor:
    """Left: the terms over steps, raw and smoothed. Right: before and after, on noise that training did not see.

    Returns:
        (1, height, width, 3) float32 in [0, 1], an IMAGE of the host.
    """
    figure, image = canvas(width, height)
    grid = figure.add_gridspec(1, 2, width_ratios=(3, 2))
    axes = figure.add_subplot(grid[0])
    highest = 1.0
    for number, (name, values) in enumerate(normalised_terms(found, names)):
        colour = "#555555" if name == "overlap" else _COLOURS[number % len(_COLOURS)]
        steps = np.arange(1, len(values) + 1)
        window = 1 if name == "overlap" else max(1, min(20, len(values) // 5))  # only the fits are noisy
        axes.plot(steps, values, color=colour, linewidth=0.6, alpha=0.35)
        axes.plot(steps, smoothed(values, window), color=colour, linewidth=2, label=name)
        highest = max(highest, float(np.quantile(values, 0.95))) if values else highest
    axes.set_ylim(0, 1.1 * highest)
    axes.set_title("fits as shares of what each LoRA does; overlap as a share of its first", fontsize=10)
    axes.set_xlabel("step")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9, framealpha=0.8, edgecolor="none")
    bars = figure.add_subplot(grid[1])
    at = np.arange(len(names))
    for shift, label, colour in ((-0.2, "plain sum", "#c9c9d2"), (0.2, "ZipLoRA", "#1f4e8c")):
        values = [(fit.plain if shift < 0 else fit.merged) / max(fit.base, 1e-30) for fit in found.fits]
        drawn = bars.bar(at + shift, values, 0.4, color=colour, label=label)
        bars.bar_label(drawn, [f"{value:.2f}" for value in values], fontsize=9)
    bars.set_xticks(at, [name if len(name) <= 22 else f"{name[:21]}…" for name in names], fontsize=9)
    bars.set_title("distance to each LoRA alone, on new noise", fontsize=10)
    bars.margins(y=0.15)
    bars.legend(fontsize=9, framealpha=0.8, edgecolor="none")
    return image()
