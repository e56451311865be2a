"""The loss curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


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
    # The object interface and no pyplot: pyplot keeps every figure in a global and picks a GUI backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps = np.arange(1, len(losses) + 1)
    window = max(1, min(50, len(losses) // 8))
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
    canvas.draw()  # type: ignore[no-untyped-call]
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
    return torch.from_numpy(pixels.astype(np.float32) / 255)[None]
