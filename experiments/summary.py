"""Rows of scores -> a figure for each method and metric, with its uncertainty, and paired tests between methods.

Figures of different networks are never pooled: a metric measured by two models is two columns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from ..metrics.meaning import Meaning, meaning
from ..metrics.rows import Row
from .paired import Comparison, compare_pairs, holm
from .statistics import INTERVALS, Estimate, by_unit, estimate

LEAST_SUBJECTS = 5
"""With fewer, an interval over subjects says nothing, and pictures are the units."""
UNITS = ("auto", "subject", "picture")
MOST_METHODS = 4
"""With more, every method is compared with the first alone: all pairs would be a page of tests."""
MOST_NOTES = 20


@dataclass(frozen=True)
class Method:
    """A row of the table: what is compared, at one step of training (None: not said)."""

    name: str
    step: int | None = None

    @property
    def label(self) -> str:
        """As people read it."""
        name = self.name or "(no name)"
        return name if self.step is None else f"{name}, step {self.step}"


@dataclass(frozen=True)
class Column:
    """A metric by one model."""

    metric: str
    model: str = ""

    @property
    def meaning(self) -> Meaning:
        """How to read it."""
        return meaning(self.metric)


@dataclass(frozen=True)
class Cell:
    """A figure.

    Attributes:
        estimate: mean, standard error, interval and number of units; None where every row is N/A.
        count: rows with a value.
        missing: rows that are N/A; they are in no mean.
        unit: what the interval is over, "subject" or "picture".
    """

    estimate: Estimate | None
    count: int
    missing: int
    unit: str


@dataclass(frozen=True)
class Summary:
    """What the rows say together.

    Attributes:
        methods: rows of the table, in the order in which they came; steps of one method by their number.
        columns: in the order in which they came, costs last.
        cells: what is not there was not measured.
        tests: paired, Holm's correction over all of them.
        interval: one of ``statistics.INTERVALS``.
        notes: what a reader must know.
    """

    methods: tuple[Method, ...]
    columns: tuple[Column, ...]
    cells: dict[tuple[Method, Column], Cell]
    tests: tuple[Comparison, ...]
    interval: str
    notes: tuple[str, ...]

    def best(self, column: Column) -> list[Method]:
        """Those with the best mean; none where the direction is not known, or there is only one to choose from."""
        direction = column.meaning.direction
        means = {
            method: cell.estimate.mean
            for method in self.methods
            if (cell := self.cells.get((method, column))) and cell.estimate is not None
        }
        if not direction or len(means) < 2:
            return []
        top = (max if direction == "higher" else min)(means.values())
        return [method for method, mean in means.items() if mean == top]


def summarise(
    rows: Iterable[Row], *, interval: str = "bootstrap", unit: str = "auto", baseline: str = "", seed: int = 0
) -> Summary:
    """Group the rows by method, step, metric and model.

    Args:
        rows: of any nodes. A row that came twice (by two wires) counts once.
        interval: "bootstrap", "bca" or "t": see `statistics.estimate`.
        unit: what is independent of each other. "picture"; "subject": its pictures are averaged first; "auto": subjects
            where a column has at least five of them, else pictures.
        baseline: the method that the others are tested against; empty: all pairs, of more than four methods only those
            with the first.
        seed: of the bootstrap.

    Raises:
        ValueError: there is no row, or an argument is none of those named.
    """
    came = list(rows)
    kept = list(dict.fromkeys(came))
    if not kept:
        raise ValueError("there is no figure to summarise: wire the metrics output of a node that scores pictures")
    if unit not in UNITS or interval not in INTERVALS:
        raise ValueError(
            f"unit is one of {', '.join(UNITS)}, interval of {', '.join(INTERVALS)}; got {unit}, {interval}"
        )
    groups: dict[tuple[Method, Column], list[Row]] = {}
    for row in kept:
        groups.setdefault((Method(row.method, row.step), Column(row.metric, row.model)), []).append(row)
    methods = _in_order([method for method, _ in groups])
    if baseline and baseline not in {method.name for method in methods}:
        names = ", ".join(dict.fromkeys(method.name for method in methods))
        raise ValueError(f"no method is called {baseline!r} (baseline); there are: {names}")
    columns = sorted(dict.fromkeys(column for _, column in groups), key=lambda column: column.meaning.cost)
    units = {column: _unit(column, groups, unit) for column in columns}
    cells = {key: _cell(found, units[key[1]], interval, seed) for key, found in groups.items()}
    tests: list[Comparison] = []
    for column in columns:
        if not column.meaning.cost:
            having = [method for method in methods if (method, column) in groups]
            for one, other in _pairs(having, baseline):
                pair = groups[one, column], groups[other, column]
                found = compare_pairs(*pair, by_subject=units[column] == "subject", interval=interval, seed=seed)
                if found is not None:
                    tests.append(Comparison(column.metric, column.model, one.label, other.label, *found))
    notes = _notes(came, kept, columns, units, cells, interval)
    return Summary(tuple(methods), tuple(columns), cells, tuple(holm(tests)), interval, tuple(notes))


def _cell(rows: Sequence[Row], unit: str, interval: str, seed: int) -> Cell:
    known = [(float(row.value), row) for row in rows if row.value is not None and math.isfinite(row.value)]
    missing = len(rows) - len(known)
    if not known:
        return Cell(None, 0, missing, unit)
    key = subject_of if unit == "subject" else _picture_of
    means = by_unit([value for value, _ in known], [key(row, place) for place, (_, row) in enumerate(known)])
    return Cell(estimate(list(means.values()), interval, seed), len(known), missing, unit)


def subject_of(row: Row, place: int) -> Hashable:
    """The unit of statistics over subjects."""
    return row.subject


def _picture_of(row: Row, place: int) -> Hashable:
    """One picture, whoever measured it; a row that names neither seed nor picture stands for itself."""
    if row.seed is None and row.picture is None:
        return place
    return (row.subject, row.prompt, row.seed, row.picture)


def _unit(column: Column, groups: dict[tuple[Method, Column], list[Row]], unit: str) -> str:
    if column.meaning.cost:
        return "picture"
    if unit != "auto":
        return unit
    fewest = min(len({row.subject for row in rows}) for (_, other), rows in groups.items() if other == column)
    return "subject" if fewest >= LEAST_SUBJECTS else "picture"


def _in_order(methods: Sequence[Method]) -> list[Method]:
    """As they came, the steps of one method together and by number."""
    names = list(dict.fromkeys(method.name for method in methods))

    def place(method: Method) -> tuple[int, int]:
        return names.index(method.name), -1 if method.step is None else method.step

    return sorted(dict.fromkeys(methods), key=place)


def _pairs(methods: Sequence[Method], baseline: str) -> list[tuple[Method, Method]]:
    """(one, the one that it is measured against)."""
    if baseline:
        bases = [method for method in methods if method.name == baseline]
        return [(method, base) for base in bases for method in methods if method.name != baseline]
    against = methods[:1] if len(methods) > MOST_METHODS else methods
    return [(other, one) for place, one in enumerate(against) for other in methods[place + 1 :]]


def _notes(
    came: Sequence[Row],
    kept: Sequence[Row],
    columns: Sequence[Column],
    units: dict[Column, str],
    cells: dict[tuple[Method, Column], Cell],
    interval: str,
) -> list[str]:
    notes = []
    if len(came) > len(kept):
        notes.append(f"{len(came) - len(kept)} rows came twice and count once")
    models: dict[str, set[str]] = {}
    for column in columns:
        models.setdefault(column.metric, set()).add(column.model)
    for metric, names in models.items():
        if len(names) > 1:
            notes.append(f"{metric} was measured by {len(names)} models: their figures are not comparable")
    used = {units[column] for column in columns if not column.meaning.cost}
    subjects = len({row.subject for row in kept if not meaning(row.metric).cost})
    if used == {"picture"} and subjects > 1:
        notes.append(
            f"pictures of {subjects} subjects are taken as independent: intervals and tests speak of these subjects "
            "alone, not of others"
        )
    few = [cell.estimate.units for cell in cells.values() if cell.estimate is not None and 1 < cell.estimate.units < 10]
    if few and interval != "t":
        notes.append(f"some intervals are of {min(few)} values: a bootstrap of fewer than 10 is too narrow")
    said = list(dict.fromkeys(row.note for row in kept if row.note))
    more = [f"and {len(said) - MOST_NOTES} more notes of rows"] if len(said) > MOST_NOTES else []
    return [*notes, *said[:MOST_NOTES], *more]
