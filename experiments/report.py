"""Writes a sweep's tables and plots into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..lora.atomic import write_whole
from . import plots, table
from .store import Record, write_json


def write_report(
    folder: Path,
    records: Sequence[Record],
    varied: Sequence[str],
    replicates: Sequence[str],
    *,
    interval: str = "t",
    pareto: dict[str, Any] | None = None,
    title: str = "",
) -> list[table.Row]:
    """Write table.md, table.csv, table.json, runs.csv, one plot an axis, and pareto.png where `pareto` names x and y.

    Args:
        records: of the runs, done and failed; those without results are only in runs.csv.
        pareto: {"x": column, "y": column, "size": column, "colour": axis}, the last two optional.

    Returns:
        The table's rows.

    Raises:
        ValueError: the Pareto plot names a column that no run has.
    """
    rows = table.summarise(records, varied, replicates, interval)
    write_whole(folder / "runs.csv", [table.runs_csv(records, [*varied, *replicates]).encode()])
    write_whole(folder / "table.md", [table.to_markdown(rows).encode()])
    write_whole(folder / "table.csv", [table.to_csv(rows).encode()])
    write_json(folder / "table.json", table.to_json(rows))
    if not rows or not table.columns_of(rows):
        return rows
    for axis in varied:
        if len({repr(row.values[axis]) for row in rows}) > 1:
            safe = "".join(letter if letter.isalnum() else "_" for letter in axis)
            write_whole(folder / f"plot_{safe}.png", [plots.error_bars(rows, axis, title)])
    if pareto and pareto.get("x") and pareto.get("y"):
        named: dict[str, Any] = {key: str(pareto[key]) for key in ("x", "y", "size", "colour") if pareto.get(key)}
        write_whole(folder / "pareto.png", [plots.pareto(rows, title=title, **named)])
    return rows
