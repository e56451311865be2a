"""An inspection as a picture: ranks by block, and every layer's spectrum; what layers do stands apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .canvas import canvas
from .inspection import InspectedLayer, Inspection, block_order, sums
from .roles import ROLES

_RANK, _EFFECTIVE = "#c9d6e8", "#1f4e8c"
_SHORT = {"input_blocks.": "in ", "output_blocks.": "out ", "middle_block": "mid", "double_blocks.": "double "}
_SHORT |= {"single_blocks.": "single ", "joint_blocks.": "joint "}
_FLOOR = -3.0  # log10 of the smallest share of s₁ that is told from nothing


def inspection_plot(inspection: Inspection, width: int = 1400, height: int = 900) -> Tensor:
    """A column for each role that has layers with a ΔW; above, mean rank and effective rank of each block; below, each
    layer's singular values as shares of its largest, a row a layer in the order of the blocks.

    Returns:
        (1, height, width, 3) float32 in [0, 1], an IMAGE of the host.
    """
    columns = [
        (role, sorted(found, key=lambda layer: block_order(layer.block)))
        for role in ROLES
        if (found := [layer for layer in inspection.layers if layer.role == role and layer.shape])
    ]
    figure, image = canvas(width, height)
    norm = float(np.sqrt(sum(layer.norm**2 for _, found in columns for layer in found if layer.norm)))
    figure.suptitle(f"{inspection.architecture}: {len(inspection.layers)} layers, ‖ΔW‖ = {norm:.3g}", fontsize=13)
    if not columns:
        figure.text(0.5, 0.5, "no layer has a ΔW of its own: it depends on the base weight", ha="center", fontsize=12)
        return image()
    grid = figure.add_gridspec(2, len(columns), height_ratios=(2, 3))
    ranks, most = None, max(len(layer.values) for _, found in columns for layer in found)
    shown = None
    for number, (role, found) in enumerate(columns):
        ranks = figure.add_subplot(grid[0, number], sharey=ranks)
        _draw_ranks(ranks, found, f"{role}: {len(found)} layers", first=number == 0)
        spectra = figure.add_subplot(grid[1, number])
        shown = _draw_spectra(spectra, found, max(1, min(most, 256)), height * 0.5)
        spectra.set_ylabel("layers, by block" if number == 0 else "", fontsize=9)
    bar = figure.colorbar(shown, ax=figure.axes[1::2], fraction=0.025, pad=0.01)
    bar.set_ticks([0, -1, -2, _FLOOR], labels=["1", "0.1", "0.01", "≤ 0.001"])
    bar.set_label("singular value / largest of the layer", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return image()


def _draw_ranks(axes: Any, layers: Sequence[InspectedLayer], title: str, *, first: bool) -> None:
    """Mean rank of each block's layers, and the effective rank within it."""
    names = list(dict.fromkeys(layer.block for layer in layers))
    found = [sums(name, [layer for layer in layers if layer.block == name]) for name in names]
    at = np.arange(len(names))
    stored = [
        np.mean(
            [layer.rank if layer.rank is not None else len(layer.values) for layer in layers if layer.block == name]
        )
        for name in names
    ]
    axes.bar(at, stored, color=_RANK, width=0.85, label="rank in the file")
    axes.bar(at, [one.effective for one in found], color=_EFFECTIVE, width=0.5, label="effective rank")
    axes.set_title(title, fontsize=11)
    step = -(-len(names) // 16)
    axes.set_xticks(at[::step], [short_block(name) for name in names[::step]], rotation=60, ha="right", fontsize=8)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.2)  # room for the legend
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    if first:
        axes.set_ylabel("mean rank", fontsize=9)
        axes.legend(fontsize=8, loc="best", framealpha=0.8, edgecolor="none")


def _draw_spectra(axes: Any, layers: Sequence[InspectedLayer], columns: int, pixels: float) -> Any:
    """Heat map: rows are layers, columns singular values; grey where a layer has no more of them."""
    import matplotlib

    shares = np.full((len(layers), columns), np.nan)
    for row, layer in enumerate(layers):
        values = np.asarray(layer.values[:columns])
        if len(values):
            shares[row, : len(values)] = np.maximum(np.log10(values / values[0]), _FLOOR)
    colors = matplotlib.colormaps["magma"].with_extremes(bad="#e9e9ee")
    place = (0.5, columns + 0.5, len(layers), 0)
    shown = axes.imshow(shares, extent=place, aspect="auto", cmap=colors, vmin=_FLOOR, vmax=0, interpolation="nearest")
    starts = [row for row, layer in enumerate(layers) if row == 0 or layer.block != layers[row - 1].block]
    far, last = len(layers) * 12 / pixels, -np.inf  # a label is 12 pixels high
    ticks = []
    for start in starts:
        if start - last >= far:
            ticks.append(start)
            last = start
        if start:
            axes.axhline(start, color="white", linewidth=0.4, alpha=0.6)
    axes.set_yticks(ticks, [short_block(layers[start].block) for start in ticks], fontsize=8, va="top")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("singular value, from the largest", fontsize=9)
    return shown


def short_block(block: str) -> str:
    """A block's name for an axis: `in 4`, `mid`, `double 12`; at most 18 characters."""
    for long, short in _SHORT.items():
        block = block.replace(long, short)
    return block if len(block) <= 18 else f"{block[:17]}…"
