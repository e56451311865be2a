"""A run's curves as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..lora.canvas import canvas


def smoothed(losses: Sequence[float], window: int) -> np.ndarray:
    """Mean of the last ``window`` losses (fewer at the start), one a step. (N,) float64."""
    values = np.asarray(losses, dtype=np.float64)
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def loss_curve(losses: Sequence[float], width: int = 768, height: int = 448, title: str = "Training loss") -> Tensor:
    """Draw losses over steps, with their moving mean, because single losses are mostly the luck of σ.

    Returns:
        (1, height, width, 3) float32 in [0, 1], an IMAGE of the host.
    """
    figure, image = canvas(width, height)
    _draw_losses(figure.add_subplot(), losses, title)
    return image()


def training_curves(
    losses: Sequence[float], records: Sequence[Mapping[str, float]], width: int = 1024, height: int = 640
) -> Tensor:
    """All that a run's log tells: loss, loss by σ, learning rate, gradient norm, and how far the weights moved.

    Args:
        losses: one a step.
        records: lines of the log; a value that a line does not have is left out.

    Returns:
        (1, height, width, 3) float32 in [0, 1], an IMAGE of the host.
    """
    figure, image = canvas(width, height)
    grid = figure.add_gridspec(3, 2, width_ratios=(3, 2))
    _draw_losses(figure.add_subplot(grid[:2, 0]), losses, "Training loss")

    def line(axes: Any, name: str, color: str, label: str, *, window: int = 1) -> None:
        found = [(record["step"], record[name]) for record in records if name in record]
        if found:
            steps, values = zip(*found, strict=True)
            marker = "." if len(found) < 3 else None
            shown = smoothed(values, window) if window > 1 else np.asarray(values)
            axes.plot(steps, shown, color=color, linewidth=1.2, marker=marker, label=label)

    def panel(place: Any, title: str) -> Any:
        axes = figure.add_subplot(place)
        axes.set_title(title, fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
        return axes

    def legend(axes: Any) -> None:
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8, loc="best", framealpha=0.8, edgecolor="none")

    window = _window(len(losses) // 3)  # a third of the pictures is in each band
    bands = panel(grid[0, 1], "Loss by noise level (mean)")
    for name, color in (("low", "#3b8f5a"), ("middle", "#c98a1b"), ("high", "#b03a48")):
        line(bands, f"loss_{name}_sigma", color, f"{name} σ", window=window)
    legend(bands)
    kept = panel(grid[2, 0], "Learning rate")
    line(kept, "learning_rate", "#555555", "learning rate")
    kept.set_ylim(bottom=0, top=1.15 * max((record.get("learning_rate", 0) for record in records), default=0) or 1.0)
    kept.set_xlabel("step", fontsize=9)
    if any("prior_loss" in record for record in records):
        kept.set_title("Learning rate; loss of the subject and of what is kept (mean)", fontsize=10)
        other = kept.twinx()
        other.tick_params(labelsize=8)
        line(other, "subject_loss", "#1f4e8c", "subject", window=window)
        line(other, "prior_loss", "#7a4fa3", "kept", window=window)
        legend(other)
    norms = panel(grid[1, 1], "Gradient norm, before clipping")
    line(norms, "gradient_norm", "#9db8d9", "each step")
    line(norms, "gradient_norm", "#1f4e8c", "mean", window=_window(len(losses)))
    if any(record.get("gradient_norm", 0) > 0 for record in records):
        norms.set_yscale("log")
    moved = panel(grid[2, 1], "‖ΔW‖, what was learnt")
    line(moved, "delta_norm", "#1f4e8c", "norm")
    moved.set_ylim(bottom=0)
    moved.set_xlabel("step", fontsize=9)
    return image()


def _window(count: int) -> int:
    """Values in a moving mean of so many."""
    return max(1, min(50, count // 8))


def _draw_losses(axes: Any, losses: Sequence[float], title: str) -> None:
    steps = np.arange(1, len(losses) + 1)
    window = _window(len(losses))
    marker = "." if len(losses) < 3 else None
    axes.plot(steps, np.asarray(losses), color="#9db8d9", linewidth=0.8, marker=marker, label="each step")
    if window > 1:
        axes.plot(steps, smoothed(losses, window), color="#1f4e8c", linewidth=2, label=f"mean of {window}")
    if losses:
        axes.legend(loc="upper right", frameon=False)
        axes.set_ylim(bottom=0, top=1.1 * float(np.quantile(np.asarray(losses), 0.995)) or 1.0)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
