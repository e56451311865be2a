"""Which combinations of values are run: a grid, values side by side, all pairs, or rows that somebody wrote down."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from .covering import all_pairs

DESIGNS = ("grid", "zip", "pairs", "rows")


@dataclass(frozen=True)
class Axis:
    """One thing that is varied.

    Attributes:
        name: its column in the table.
        inputs: addresses (node.input) that all get the value; none where each value says its own.
        values: numbers, texts or booleans; or {"label": …, "set": {address: value}} where one choice means several
            inputs with values of their own, such as a subject's folder and caption.
    """

    name: str
    inputs: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def labels(self) -> tuple[Any, ...]:
        """What the table shows of each value."""
        return tuple(label(value) for value in self.values)

    def settings(self, shown: Any) -> dict[str, Any]:
        """{address: value} of the value that is shown so."""
        value = self.values[self.labels.index(shown)]
        return {**dict.fromkeys(self.inputs, shown), **(value["set"] if isinstance(value, Mapping) else {})}


def label(value: Any) -> Any:
    """What the table shows of a value."""
    return value["label"] if isinstance(value, Mapping) else value


def axis_from(name: str, described: Any) -> Axis:
    """An Axis from {"inputs": address or addresses, "values": […]}.

    Raises:
        ValueError: something is missing, a value stands twice, or a value sets nothing.
    """
    if not isinstance(described, Mapping) or not isinstance(described.get("values"), list) or not described["values"]:
        raise ValueError(f'axis {name!r} must be {{"inputs": "node.input", "values": [at least one]}}, got {described}')
    inputs = described.get("inputs") or ()
    inputs = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    for value in described["values"]:
        if isinstance(value, Mapping):
            if "label" not in value or not isinstance(value.get("set"), Mapping):
                raise ValueError(
                    f'a value of axis {name!r} must have "label" and "set": {{address: value}}, got {value}'
                )
        elif not inputs:
            raise ValueError(f'axis {name!r} sets nothing: give it "inputs", such as "LikenessTrainLoRA.rank"')
    axis = Axis(name, inputs, tuple(described["values"]))
    shown = [json.dumps(entry) for entry in axis.labels]
    if len(set(shown)) < len(shown):
        raise ValueError(f"axis {name!r} has a value twice: {', '.join(shown)}")
    return axis


def combinations(
    axes: Sequence[Axis], design: str, replicates: Sequence[str], rows: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The runs, each {axis: label}, in order. Axes named in `replicates` (seeds, subjects) are crossed with all others.

    Raises:
        ValueError: an unknown design or axis, values of different number side by side, or a row that names none.
    """
    if design not in DESIGNS:
        raise ValueError(f"the design {design!r} is not known: expected one of {', '.join(DESIGNS)}")
    names = [axis.name for axis in axes]
    unknown = sorted(set(replicates) - set(names))
    if unknown:
        raise ValueError(f"replicates names {', '.join(unknown)}, but the axes are {', '.join(names)}")
    varied = [axis for axis in axes if axis.name not in replicates]
    repeated = [axis for axis in axes if axis.name in replicates]
    settings = _settings(varied, design, rows)
    repeats = [
        dict(zip((a.name for a in repeated), part, strict=True)) for part in product(*(a.labels for a in repeated))
    ]
    return [{name: {**one, **two}[name] for name in names} for one in settings for two in repeats]


def _settings(varied: Sequence[Axis], design: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    names = [axis.name for axis in varied]
    if design == "rows":
        return [_row(varied, row) for row in rows]
    if not varied:
        return [{}]
    if design == "grid":
        return [dict(zip(names, part, strict=True)) for part in product(*(axis.labels for axis in varied))]
    if design == "zip":
        counts = {axis.name: len(axis.values) for axis in varied}
        if len(set(counts.values())) != 1:
            raise ValueError(f"values side by side (zip) must be equally many, got {counts}")
        return [dict(zip(names, part, strict=True)) for part in zip(*(axis.labels for axis in varied), strict=True)]
    chosen = all_pairs([len(axis.values) for axis in varied])
    return [{axis.name: axis.labels[index] for axis, index in zip(varied, row, strict=True)} for row in chosen]


def _row(varied: Sequence[Axis], row: Mapping[str, Any]) -> dict[str, Any]:
    for axis in varied:
        if row.get(axis.name) not in axis.labels:
            raise ValueError(f"a row says {axis.name} = {row.get(axis.name)!r}, which is none of {list(axis.labels)}")
    extra = sorted(set(row) - {axis.name for axis in varied})
    if extra:
        raise ValueError(f"a row names {', '.join(extra)}, which is no axis (or is one of the replicates)")
    return {axis.name: row[axis.name] for axis in varied}
