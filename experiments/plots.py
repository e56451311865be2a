"""A sweep's pictures: results with error bars, and one result against another with the Pareto front."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .statistics import Estimate, pareto_front
from .table import Row, columns_of

MOST_LINES = 6


Shape = tuple[float, float]
"""Width and height in units of 110 pixels."""


def error_bars(rows: Sequence[Row], axis: str, title: str = "", shape: Shape | None = None) -> bytes:
    """Each result over one axis: means, with bars over their 95% intervals; a line for each setting of the other axes.

    Args:
        rows: of `table.summarise`. With more than six settings of the other axes, lines are left out: only points.
        shape: of the picture; None: as it fits, one result beside the other.

    Returns:
        A PNG.
    """
    columns = columns_of(rows)
    figure = new_figure(*(shape or (4.2 * max(1, len(columns)), 3.6)))
    across = len(columns) if shape is None else max(1, math.ceil(math.sqrt(len(columns))))
    places, numeric = _places([row.values[axis] for row in rows])
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(", ".join(f"{k} {v}" for k, v in row.values.items() if k != axis), []).append(row)
    for index, column in enumerate(columns):
        axes = figure.add_subplot(math.ceil(len(columns) / across), across, index + 1)
        for name, members in series.items():
            points = [(places[repr(row.values[axis])], row.figures[column]) for row in members if column in row.figures]
            points.sort(key=lambda point: point[0])
            x, y = [place for place, _ in points], [estimate.mean for _, estimate in points]
            line = "-" if len(series) <= MOST_LINES else ""
            axes.errorbar(x, y, bars_of([e for _, e in points]), fmt=f"o{line}", markersize=4, capsize=3, label=name)
        if not numeric:
            axes.set_xticks(list(places.values()), [name.strip("'") for name in places], rotation=30, ha="right")
        elif len(places) > 1 and min(places.values()) > 0 and max(places.values()) / min(places.values()) >= 8:
            axes.set_xscale("log")
            ticks = sorted(places.values())
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
        axes.set_xlabel(axis)
        axes.set_title(column, fontsize=10)
        axes.grid(alpha=0.3)
        if 1 < len(series) <= MOST_LINES:
            axes.legend(fontsize=7)
    if title:
        figure.suptitle(title, fontsize=11)
    return png(figure)


def pareto(
    rows: Sequence[Row],
    x: str,
    y: str,
    size: str = "",
    title: str = "",
    colour: str = "",
    *,
    lower: Sequence[str] = (),
    shape: Shape = (7.6, 5.4),
) -> bytes:
    """One result over another, 95% intervals as bars, and the front through the best.

    Args:
        size: a result whose value is the marker's area, such as the file's size; none where empty.
        colour: an axis whose values have a colour each.
        lower: results of which less is better; of all others, more is.
        shape: of the picture.

    Returns:
        A PNG.

    Raises:
        ValueError: no row has both results.
    """
    having = [row for row in rows if x in row.figures and y in row.figures]
    if not having:
        raise ValueError(f"no row has both {x!r} and {y!r}; the results are {', '.join(columns_of(rows)) or 'none'}")
    figure = new_figure(*shape)
    axes = figure.add_subplot()
    points = [(row.figures[x].mean, row.figures[y].mean) for row in having]
    sizes = [row.figures[size].mean if size in row.figures else 0.0 for row in having]
    largest = max(sizes) or 1.0
    groups = list(dict.fromkeys(repr(row.values.get(colour)) for row in having))
    for row, point, number in zip(having, points, sizes, strict=True):
        shade = f"C{groups.index(repr(row.values.get(colour))) % 10}"
        bars_x, bars_y = bars_of([row.figures[x]]), bars_of([row.figures[y]])
        axes.errorbar(*point, yerr=bars_y, xerr=bars_x, fmt="none", color=shade, alpha=0.35, linewidth=1, capsize=2)
        area = 30 + 420 * number / largest
        axes.scatter(*point, s=area, color=shade, alpha=0.6, edgecolor="black", linewidth=0.6)
        label = " ".join(str(value) for name, value in row.values.items() if name != colour or len(row.values) == 1)
        axes.annotate(label, point, xytext=(math.sqrt(area) / 2 + 2, 3), textcoords="offset points", fontsize=7)
    sign_x, sign_y = (-1 if name in lower else 1 for name in (x, y))
    front = [points[index] for index in pareto_front([(sign_x * a, sign_y * b) for a, b in points])]
    axes.plot(*zip(*front, strict=True), color="0.4", linestyle="--", linewidth=1, zorder=0, label="Pareto front")
    axes.set_xlabel(f"← {x}" if x in lower else f"{x} →")
    axes.set_ylabel(f"← {y}" if y in lower else f"{y} →")
    axes.grid(alpha=0.3)
    shown = f"area: {size} (largest {largest:.3g})" if any(sizes) else ""
    axes.legend(fontsize=8, title=shown or None, title_fontsize=8)
    axes.set_title(title or f"{y} against {x}", fontsize=11)
    axes.margins(0.12)
    return png(figure)


def bars_of(estimates: Sequence[Estimate]) -> Any:
    """(2, N): below and above the means; nothing where there is no interval."""
    reach = [(e.mean - e.low, e.high - e.mean) for e in estimates]
    return np.maximum(np.nan_to_num(np.asarray(reach, dtype=np.float64).reshape(-1, 2).T), 0)


def _places(values: Sequence[Any]) -> tuple[dict[str, float], bool]:
    """Where each value stands on the axis, and whether it stands there as a number."""
    distinct = {repr(value): value for value in values}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct.values()):
        return {name: float(value) for name, value in distinct.items()}, True
    return {name: float(index) for index, name in enumerate(distinct)}, False


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many times 110 pixels. No pyplot, which keeps every figure in a global."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any) -> bytes:
    """The figure as a file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
