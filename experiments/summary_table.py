"""A summary as markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

from .statistics import CONFIDENCE
from .summary import Cell, Column, Summary
from .table import shown

Json = dict[str, Any]
HOW = {
    "t": "Student's t",
    "bootstrap": "bootstrap (percentiles of 10,000 resampled means, seeded)",
    "bca": "bootstrap (BCa, 10,000 resampled means, seeded)",
}


def to_markdown(summary: Summary, title: str = "") -> str:
    """The table with the best in bold, what each metric is, the paired tests, and notes."""
    models = numbered_models(summary)
    head = ["method", *(heading(column, models) for column in summary.columns)]
    body = []
    for method in summary.methods:
        cells = []
        for column in summary.columns:
            text = _cell(summary.cells.get((method, column)), column)
            cells.append(f"**{text}**" if method in summary.best(column) else text)
        body.append([method.label, *cells])
    text = (f"# {title}\n\n" if title else "") + _table(head, body)
    text += f"\n\nMean ± standard error [{CONFIDENCE:.0%} interval]; bold is best. {_over(summary)}\n\n"
    text += "\n".join(_explained(summary))
    if models:
        text += "\n\n" + "\n".join(f"- [{number}] {model}" for model, number in models.items())
    if summary.tests:
        text += "\n\n## Paired tests\n\n" + _tests(summary, models)
        text += (
            "\n\nSame subject, prompt and seed in each pair. p values are two-sided, after Holm's correction over all "
            f"{len(summary.tests)} rows."
        )
    if summary.notes:
        text += "\n\n## Notes\n\n" + "\n".join(f"- {note}" for note in summary.notes)
    return text + "\n"


def heading(column: Column, models: dict[str, int]) -> str:
    """Metric, direction, and the model's number where there are several: ``clip_i ↑ [2]``."""
    number = f" [{models[column.model]}]" if column.model in models else ""
    return f"{column.metric} {column.meaning.arrow}".rstrip() + number


def figures(summary: Summary) -> list[Json]:
    """One entry a method and column, JSON-safe: what is not known is None."""
    found = []
    for method in summary.methods:
        for column in summary.columns:
            cell = summary.cells.get((method, column))
            if cell is None:
                continue
            value = cell.estimate
            found.append(
                {
                    "method": method.name,
                    "step": method.step,
                    "metric": column.metric,
                    "model": column.model,
                    "direction": column.meaning.direction,
                    "unit": column.meaning.unit,
                    "mean": _known(value.mean if value else None),
                    "error": _known(value.error if value else None),
                    "low": _known(value.low if value else None),
                    "high": _known(value.high if value else None),
                    "interval": summary.interval,
                    "over": cell.unit,
                    "units": value.units if value else 0,
                    "count": cell.count,
                    "missing": cell.missing,
                    "best": method in summary.best(column),
                }
            )
    return found


def to_csv(summary: Summary) -> str:
    """A line a method and column; empty where there is no figure."""
    lines = figures(summary)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def to_json(summary: Summary) -> Json:
    """{"figures": […], "tests": […], "notes": […]}, JSON-safe."""
    tests = [{name: _known(value) for name, value in vars(test).items()} for test in summary.tests]
    return {"figures": figures(summary), "tests": tests, "notes": list(summary.notes)}


def numbered_models(summary: Summary) -> dict[str, int]:
    """A number for each model that measured, from 1."""
    names = dict.fromkeys(column.model for column in summary.columns if column.model)
    return {name: number for number, name in enumerate(names, 1)}


def _cell(cell: Cell | None, column: Column) -> str:
    if cell is None:
        return "–"
    missing = f"{cell.missing} N/A" if cell.missing else ""
    if cell.estimate is None:
        return missing
    if column.metric == "trained_parameters":
        return f"{cell.estimate.mean:,.0f}"
    counted = [f"n {cell.count}"] if cell.count > 1 else []
    about = ", ".join([*counted, *([missing] if missing else [])])
    return shown(cell.estimate) + (f" ({about})" if about else "")


def _over(summary: Summary) -> str:
    over: dict[str, list[str]] = {}
    for (_, column), cell in summary.cells.items():
        if not column.meaning.cost and cell.estimate is not None and cell.estimate.units > 1:
            over.setdefault(cell.unit, []).append(column.metric)
    if not over:
        return "No figure has more than one value: there is no interval."
    how = HOW[summary.interval]
    if len(over) == 1:
        return f"Intervals: {how}, over {next(iter(over))}s."
    parts = [f"over {unit}s for {', '.join(dict.fromkeys(names))}" for unit, names in over.items()]
    return f"Intervals: {how}, {'; '.join(parts)}."


def _explained(summary: Summary) -> list[str]:
    lines = []
    for column in {column.metric: column for column in summary.columns}.values():
        meant = column.meaning
        better = f" {meant.arrow} {meant.direction} is better" if meant.direction else ""
        unit = f" ({meant.unit})" if meant.unit else ""
        lines.append(f"- {column.metric}{better}{unit}: {meant.summary}")
    return lines


def _tests(summary: Summary, models: dict[str, int]) -> str:
    head = ["metric", "compared", "difference [interval]", "pairs", "p, t test", "p, Wilcoxon"]
    body = []
    for test in summary.tests:
        interval = f"{test.mean:+.4g} [{test.low:+.4g}, {test.high:+.4g}]"
        column = heading(Column(test.metric, test.model), models)
        body.append(
            [
                column,
                f"{test.one} − {test.other}",
                interval,
                str(test.pairs),
                _p(test.holm_t),
                _p(test.holm_wilcoxon),
            ]
        )
    return _table(head, body)


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "¦") for cell in cells) + " |"

    return "\n".join([row(head), "|" + " --- |" * len(head), *map(row, body)])


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
