"""Coefficients of columns as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from ..lora.canvas import canvas
from ..lora.columns import Columns, columns_of
from ..lora.inspection_plot import short_block
from .columns import blocks_of_columns, overlap_of

_COLOURS = ("#1f4e8c", "#c98a1b", "#3b8f5a", "#b03a48", "#7a4fa3", "#555555", "#2a8c8c", "#a05a2c")
_COLUMNS = 160
"""Of the map; a layer's coefficients, sorted, are averaged into as many."""


def column_plot(
    columns: Mapping[str, Columns], names: Sequence[str], title: str = "", width: int = 1400, height: int = 900
) -> Tensor:
    """From above: how the coefficients of each LoRA are distributed; their mean by block, and how much two LoRAs share
    there; a map of each LoRA, a row a layer in the order of the blocks, its coefficients from the smallest to the
    largest. What is 1 everywhere was left as it is.

    Args:
        columns: canonical layer -> coefficients; at least one layer.
        names: of the LoRAs.

    Returns:
        (1, height, width, 3) float32 in [0, 1], an IMAGE of the host.

    Raises:
        ValueError: there is no layer.
    """
    if not columns:
        raise ValueError("there are no coefficients to draw")
    figure, image = canvas(width, height)
    everything = overlap_of(columns, len(names))
    figure.suptitle(f"{title}{': ' if title else ''}coefficients of the columns of {len(columns)} layers", fontsize=13)
    grid = figure.add_gridspec(2, 2 * len(names), height_ratios=(2, 3))
    all_of_it = [
        np.concatenate([m.numpy() for m in found.values()]) if (found := columns_of(columns, number)) else np.zeros(0)
        for number in range(len(names))
    ]
    low = min(0.0, *(float(np.quantile(m, 0.001)) for m in all_of_it if len(m)))
    high = max(1.1, *(float(np.quantile(m, 0.999)) for m in all_of_it if len(m)))
    shares = figure.add_subplot(grid[0, : len(names)])
    for number, (name, values) in enumerate(zip(names, all_of_it, strict=True)):
        if len(values):
            weights = np.full(len(values), 1 / len(values))
            colour = _COLOURS[number % len(_COLOURS)]
            mean = everything.means[number]
            style = {"bins": 80, "range": (low, high), "weights": weights, "color": colour}
            shares.hist(
                values.clip(low, high), histtype="stepfilled", alpha=0.45, label=f"{name}: mean {mean:.2f}", **style
            )
    shares.axvline(1, color="#888888", linewidth=0.8, linestyle="--")
    shares.set_title("how many columns have which coefficient", fontsize=11)
    shares.set_xlabel("coefficient (1: the column as it was, 0: left out)", fontsize=9)
    shares.set_ylabel("share of the columns", fontsize=9)
    shares.legend(fontsize=9, framealpha=0.8, edgecolor="none")
    blocks = blocks_of_columns(columns)
    axes = figure.add_subplot(grid[0, len(names) :])
    at = np.arange(len(blocks))
    figures = [overlap_of(of, len(names)) for of in blocks.values()]
    for number, name in enumerate(names):
        means = [found.means[number] for found in figures]
        axes.plot(at, means, marker="o", markersize=3, color=_COLOURS[number % len(_COLOURS)], label=name)
    axes.bar(at, [found.shared for found in figures], color="#d8d8de", label="shared by two, mean |m m′|")
    step = -(-len(blocks) // 16)
    axes.set_xticks(
        at[::step], [short_block(name) for name in list(blocks)[::step]], rotation=60, ha="right", fontsize=8
    )
    axes.set_title("mean |m| by block", fontsize=11)
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(fontsize=9, framealpha=0.8, edgecolor="none")
    ordered = [name for of in blocks.values() for name in of]
    for number, name in enumerate(names):
        place = figure.add_subplot(grid[1, 2 * number : 2 * number + 2])
        rows = np.stack([_row(columns[layer].of(number)) for layer in ordered])
        shown = place.imshow(rows, aspect="auto", cmap="RdBu_r", vmin=2 - max(2.0, high), vmax=max(2.0, high))
        place.set_title(name, fontsize=11)
        place.set_xticks([])
        place.set_xlabel("columns of a layer, from the smallest coefficient to the largest", fontsize=9)
        starts = np.cumsum([0, *(len(of) for of in blocks.values())])[:-1]
        far = -(-len(blocks) // 24)
        labels = [short_block(block) for block in list(blocks)[::far]] if number == 0 else []
        place.set_yticks(starts[::far] if number == 0 else [], labels, fontsize=8, va="top")
    bar = figure.colorbar(shown, ax=figure.axes[2:], fraction=0.02, pad=0.01)
    bar.set_label("coefficient", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return image()


def _row(m: Tensor | None) -> np.ndarray:
    """(_COLUMNS,) sorted coefficients, averaged; NaN where the LoRA leaves the layer alone."""
    if m is None:
        return np.full(_COLUMNS, np.nan)
    values = np.sort(m.numpy())
    if len(values) < _COLUMNS:
        return np.asarray(values[np.arange(_COLUMNS) * len(values) // _COLUMNS])
    edges = np.linspace(0, len(values), _COLUMNS + 1).astype(int)
    return np.asarray(np.add.reduceat(values, edges[:-1]) / np.diff(edges))
