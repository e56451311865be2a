"""A merge as a picture: what each block is made of, how the LoRAs stand to one another there, and what was kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..lora.canvas import canvas
from ..lora.inspection_plot import short_block
from .merge import MergedLayer
from .report import by_block, whole

_MOST_LORAS = 12
_MOST_NUMBERED = 28  # columns; in more, figures would overlap


def merge_heat_map(
    layers: Sequence[MergedLayer], names: Sequence[str], title: str = "", width: int = 1400, height: int = 900
) -> Tensor:
    """A column a block, in the order in which the model runs. From above:

    - the share of each LoRA, ‖wᵢΔWᵢ‖ / Σⱼ‖wⱼΔWⱼ‖; of more than 12 the largest, and the others together;
    - the block's share of the merged ΔW, ‖ΔW_block‖² / ‖ΔW‖²;
    - the mean cosine of two LoRAs; opposite signs, and beneath what chance alone gives;
    - the energy that is left after re-compression, and the mean rank.

    Grey: not measured, or there is only one LoRA. names: of the LoRAs, in their order.

    Returns:
        (1, height, width, 3) float32 in [0, 1], an IMAGE of the host.

    Raises:
        ValueError: there is no layer, or there are not as many names as LoRAs.
    """
    blocks, everything = by_block(layers), whole(layers)
    if len(names) != len(everything.norms):
        raise ValueError(f"there are {len(names)} names for {len(everything.norms)} LoRAs")
    shares, shown = _shares(blocks, names)
    energies = [(block.norm / everything.norm) ** 2 if everything.norm > 0 else math.nan for block in blocks]
    known = not math.isnan(everything.cosine)
    panels: list[tuple[str, list[str], list[list[float]], str, tuple[float, float]]] = [
        ("share of the norm", shown, shares, "viridis", (0, max(map(_largest, shares)))),
        ("share of the merge", ["merged ΔW"], [energies], "magma", (0, _largest(energies))),
        ("cosine", ["two LoRAs"], [[block.cosine for block in blocks]], "RdBu_r", (-1, 1)),
        (
            "opposite signs",
            ["measured", "by chance"],
            [[block.conflict.share for block in blocks], [block.conflict.chance for block in blocks]],
            "PuOr_r",
            (0, 1),
        ),
        ("energy kept", ["of the merge"], [[block.energy for block in blocks]], "YlGn", (0, 1)),
    ]
    figure, image = canvas(width, height)
    head = f"energy kept {everything.energy:.1%}"
    if known:
        signs = f"opposite signs {everything.conflict.share:.1%} (chance {everything.conflict.chance:.1%})"
        head = f"cosine {everything.cosine:+.3f}, {signs}, {head}"
    figure.suptitle(f"{title}: {head}" if title else head, fontsize=12)
    grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=[len(panel[1]) + 0.3 for panel in panels])
    for axes, (label, rows, values, colors, limits) in zip(grid, panels, strict=True):
        _panel(figure, axes, rows, np.array(values, dtype=float), colors, limits, label)
    step = -(-len(blocks) // 64)
    ticks = [
        short_block(block.name) + ("" if block.rank is None or step > 1 else f"\nrank {block.rank}") for block in blocks
    ]
    upright = len(blocks) > 12
    grid[-1].set_xticks(
        range(0, len(blocks), step),
        [tick.replace("\n", ", ") for tick in ticks[::step]] if upright else ticks[::step],
        rotation=90 if upright else 0,
        fontsize=8,
    )
    return image()


def _shares(blocks: Sequence[MergedLayer], names: Sequence[str]) -> tuple[list[list[float]], list[str]]:
    """Rows of shares, 0 to 1, and their names."""
    norms = np.array([block.norms for block in blocks]).T
    total = norms.sum(0)
    shares = np.divide(norms, total, out=np.full_like(norms, math.nan), where=total > 0)
    if len(names) <= _MOST_LORAS:
        return shares.tolist(), [_cut(name) for name in names]
    order = np.argsort(-np.sqrt((norms**2).sum(1)), kind="stable")
    first, rest = sorted(order[: _MOST_LORAS - 1].tolist()), order[_MOST_LORAS - 1 :]
    rows = [*shares[first].tolist(), shares[rest].sum(0).tolist()]
    return rows, [*(_cut(names[i]) for i in first), f"{len(rest)} others"]


def _panel(
    figure: Any,
    axes: Any,
    rows: Sequence[str],
    values: NDArray[np.float64],
    colors: str,
    limits: tuple[float, float],
    label: str,
) -> None:
    import matplotlib

    scale = matplotlib.colormaps[colors].with_extremes(bad="#e9e9ee")
    shown = axes.imshow(values, aspect="auto", cmap=scale, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_title(label, fontsize=10, loc="left", pad=3)
    axes.tick_params(axis="x", length=0, labelbottom=False)
    if axes.get_subplotspec().is_last_row():
        axes.tick_params(axis="x", labelbottom=True)
    bar = figure.colorbar(shown, ax=axes, fraction=0.02, pad=0.01)
    bar.ax.tick_params(labelsize=8)
    if values.shape[1] > _MOST_NUMBERED:
        return
    for row, column in np.argwhere(~np.isnan(values)):
        value = values[row, column]
        red, green, blue, _ = scale(shown.norm(value))
        ink = "white" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else "black"
        text = f"{value:+.2f}" if limits[0] < 0 else f"{value:.0%}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=ink)


def _cut(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:23]}…"


def _largest(values: Sequence[float]) -> float:
    return max((value for value in values if not math.isnan(value)), default=1.0)
