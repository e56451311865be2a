"""The table of a sweep: a row for each setting, with means and intervals over its repeats."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .statistics import Estimate, by_unit, estimate
from .store import Record


@dataclass(frozen=True)
class Row:
    """One setting: its values, how many runs it has, and an Estimate for each column."""

    values: dict[str, Any]
    runs: int
    figures: dict[str, Estimate]


def summarise(
    records: Sequence[Record], varied: Sequence[str], replicates: Sequence[str], interval: str = "t"
) -> list[Row]:
    """Rows in the order in which their settings first appear. Runs that are not done are left out.

    The unit of the statistics is the first of `replicates` (say, the subject): values of one unit are averaged first,
    and the interval is over units. Without replicates each run is a unit.
    """
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record.results:
            groups.setdefault(repr([record.values[name] for name in varied]), []).append(record)
    rows = []
    for group in groups.values():
        columns = list(dict.fromkeys(name for record in group for name in record.results))
        figures = {}
        for column in columns:
            having = [record for record in group if math.isfinite(record.results.get(column, math.nan))]
            units = [repr(record.values[replicates[0]]) if replicates else record.key for record in having]
            if having:
                means = by_unit([record.results[column] for record in having], units)
                figures[column] = estimate(list(means.values()), interval)
        rows.append(Row({name: group[0].values[name] for name in varied}, len(group), figures))
    return rows


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Every column that some row has."""
    return list(dict.fromkeys(name for row in rows for name in row.figures))


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON can hold them; what is not known is null."""

    def known(figure: Estimate) -> dict[str, Any]:
        return {name: value if math.isfinite(value) else None for name, value in asdict(figure).items()}

    return [{**row.values, "runs": row.runs, **{name: known(f) for name, f in row.figures.items()}} for row in rows]


def to_csv(rows: Sequence[Row]) -> str:
    """A line a row: the values, runs, and of each column mean, standard error and interval."""
    header = [*(rows[0].values if rows else []), "runs"]
    columns = columns_of(rows)
    header += [f"{name}{part}" for name in columns for part in ("", " error", " low", " high")]
    lines = []
    for row in rows:
        line: list[Any] = [*row.values.values(), row.runs]
        for name in columns:
            figure = row.figures.get(name)
            numbers = (figure.mean, figure.error, figure.low, figure.high) if figure else (math.nan,) * 4
            line += ["" if math.isnan(number) else repr(number) for number in numbers]
        lines.append(line)
    return _csv([header, *lines])


def to_markdown(rows: Sequence[Row]) -> str:
    """A table to paste: mean ± standard error [interval]."""
    columns = columns_of(rows)
    header = [*(rows[0].values if rows else []), "runs", *columns]
    lines = [f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    for row in rows:
        cells = [*(str(value) for value in row.values.values()), str(row.runs)]
        cells += [shown(row.figures[name]) if name in row.figures else "–" for name in columns]
        lines.append(f"| {' | '.join(cell.replace('|', '¦') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def runs_csv(records: Sequence[Record], axes: Sequence[str]) -> str:
    """A line a run, failed ones with the host's error."""
    columns = list(dict.fromkeys(name for record in records for name in record.results))
    lines = [["run", *axes, "status", "host", "seconds", *columns, "error"]]
    for record in records:
        figures = [record.results.get(name, "") for name in columns]
        values = [record.values.get(name, "") for name in axes]
        error = record.error.get("message", "")
        lines.append([record.key, *values, record.status, record.host, record.seconds, *figures, error])  # type: ignore[list-item]
    return _csv(lines)


def shown(figure: Estimate) -> str:
    """0.712 ± 0.010 [0.690, 0.734], with as many digits as the error bears."""
    if math.isnan(figure.error):
        return f"{figure.mean:.4g}"
    digits = 4 if figure.error <= 0 else max(0, min(6, 1 - math.floor(math.log10(figure.error))))
    mean, error, low, high = (f"{v:.{digits}f}" for v in (figure.mean, figure.error, figure.low, figure.high))
    return f"{mean} ± {error} [{low}, {high}]"


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()
