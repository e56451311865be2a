"""From matplotlib to an IMAGE of the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def canvas(width: int, height: int) -> tuple[Any, Callable[[], Tensor]]:
    """(an empty figure of so many pixels, a function that turns it into an IMAGE).

    The IMAGE is (1, height, width, 3) float32 in [0, 1].
    """
    # The object interface and no pyplot: pyplot keeps every figure in a global and picks a GUI backend.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 100, height / 100), dpi=100, layout="constrained")
    drawn = FigureCanvasAgg(figure)

    def image() -> Tensor:
        drawn.draw()  # type: ignore[no-untyped-call]
        pixels = np.asarray(drawn.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
        return torch.from_numpy(pixels.astype(np.float32) / 255)[None]

    return figure, image
