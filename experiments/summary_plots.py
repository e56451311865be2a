"""A summary's pictures: bars with intervals, subject against prompt with the Pareto front, scores over training steps.

All are PNG files of one size, so that they can be one batch of pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from .plots import Shape, bars_of, error_bars, new_figure, pareto, png
from .summary import Column, Method, Summary
from .summary_table import heading, numbered_models
from .table import Row as Line

SHAPE: Shape = (12.0, 7.2)  # 1320 × 792 pixels
MOST_NAMED = 30
PROMPT = ("clip_t", "clip_score", "prompt_similarity", "image_reward")
SUBJECT = (
    "subject_similarity", "dino", "dinov2", "clip_i", "sscd", "face_similarity", "region_similarity",
    "nearest_similarity", "face_distance",
)  # fmt: skip
"""Names of metrics of prompt and of subject fidelity; the first that was measured is drawn, also by its beginning."""


def plots(summary: Summary, prompt: str = "", subject: str = "") -> dict[str, bytes]:
    """{"bars": PNG, and where the rows bear it, "pareto" and "steps"}.

    Args:
        prompt, subject: the metrics of the Pareto plot; empty: those of `PROMPT` and `SUBJECT` that were measured.

    Raises:
        ValueError: a metric that is named was not measured.
    """
    found = {"bars": bars(summary)}
    y = column_of(summary, prompt, PROMPT)
    x = column_of(summary, subject, SUBJECT)
    lines = as_lines(summary)
    if x is not None and y is not None and x != y:
        names = {column: _name(summary, column) for column in (x, y)}
        having = [line for line in lines if names[x] in line.figures and names[y] in line.figures]
        if len(having) > 1:
            lower = [names[column] for column in names if column.meaning.direction == "lower"]
            shown = [
                Line({"point": _label(line), "method": line.values["method"]}, line.runs, line.figures)
                for line in having
            ]
            title = "subject against prompt fidelity"
            found["pareto"] = pareto(shown, names[x], names[y], title=title, colour="method", lower=lower, shape=SHAPE)
    stepped = [line for line in lines if line.values["step"] is not None]
    if len({line.values["step"] for line in stepped}) > 1:
        scores = {_name(summary, column) for column in summary.columns if not column.meaning.cost}
        kept = [
            Line(line.values, line.runs, {name: f for name, f in line.figures.items() if name in scores})
            for line in stepped
        ]
        if any(line.figures for line in kept):
            found["steps"] = error_bars(kept, "step", "over training steps, with 95% intervals", SHAPE)
    return found


def bars(summary: Summary) -> bytes:
    """A panel for each metric: a bar for each method from zero, its 95% interval, the best one with a thick edge."""
    figure = new_figure(*SHAPE)
    across = max(1, math.ceil(math.sqrt(len(summary.columns))))
    down = math.ceil(len(summary.columns) / across)
    for index, column in enumerate(summary.columns):
        axes = figure.add_subplot(down, across, index + 1)
        having = [
            (method, cell.estimate)
            for method in summary.methods
            if (cell := summary.cells.get((method, column))) and cell.estimate is not None
        ]
        best = summary.best(column)
        for place, (method, estimate) in enumerate(having):
            edge = {"edgecolor": "black", "linewidth": 2.0} if method in best else {}
            axes.barh(
                place, estimate.mean, height=0.7, xerr=bars_of([estimate]), capsize=0 if estimate.units == 1 else 3,
                color=f"C{summary.methods.index(method) % 10}", alpha=0.8, **edge,
            )  # fmt: skip
            label = f"{estimate.mean:,.0f}" if abs(estimate.mean) >= 1e4 else f"{estimate.mean:.4g}"
            axes.annotate(label, (0, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8)
        names = [_short(method.label) for method, _ in having]
        axes.set_yticks(range(len(having)), names if len(names) <= MOST_NAMED else [""] * len(names), fontsize=8)
        axes.set_ylim(max(len(having), 2) - 0.5, -0.5)  # the first above; one bar alone is no wall
        unit = column.meaning.unit
        axes.set_title(_name(summary, column) + (f" ({unit})" if unit else ""), fontsize=10)
        axes.axvline(0, color="0.3", linewidth=0.8)
        axes.grid(alpha=0.3, axis="x")
        if not having:
            axes.text(0.5, 0.5, "N/A", transform=axes.transAxes, ha="center")
    figure.suptitle("means with 95% intervals; thick edge: best", fontsize=11)
    return png(figure)


def column_of(summary: Summary, wanted: str, usual: Sequence[str]) -> Column | None:
    """The column of a metric by name, or the first of the usual ones that was measured.

    Raises:
        ValueError: `wanted` was not measured.
    """
    if wanted:
        for column in summary.columns:
            if column.metric == wanted:
                return column
        there = ", ".join(dict.fromkeys(column.metric for column in summary.columns))
        raise ValueError(f"no row is of {wanted!r}, which the Pareto plot is to show; there are: {there}")
    for name in usual:
        for column in summary.columns:
            if column.metric == name or column.metric.startswith(f"{name}_"):
                return column
    return None


def as_lines(summary: Summary) -> list[Line]:
    """Rows of a sweep's table, which its plots draw: method and step, and figures by the column's name."""
    lines = []
    for method in summary.methods:
        found = {column: summary.cells.get((method, column)) for column in summary.columns}
        figures = {_name(summary, c): cell.estimate for c, cell in found.items() if cell and cell.estimate is not None}
        count = max((cell.count for cell in found.values() if cell), default=0)
        lines.append(Line({"method": method.name or "(no name)", "step": method.step}, count, figures))
    return lines


def _label(line: Line) -> str:
    return Method(line.values["method"], line.values["step"]).label


def _name(summary: Summary, column: Column) -> str:
    """Metric and direction, and where several models measured it, the model's number in the table."""
    several = sum(other.metric == column.metric for other in summary.columns) > 1
    return heading(column, numbered_models(summary) if several else {})


def _short(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
