"""What a sweep is: a graph, what is varied in it, and which of its outputs are results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .design import Axis, axis_from, combinations
from .graph import filled, find_node, with_inputs
from .presets import with_presets

_KNOWN = {
    *("name", "graph", "set", "axes", "design", "rows", "replicates", "results", "scores", "uploads", "pareto"),
    *("interval", "timeout", "preset"),
}
_WHAT_A_RUN_IS = ("graph", "set", "inputs")  # of a definition: what decides a run, besides its values


@dataclass(frozen=True)
class Run:
    """One combination of values: `key` names its files, `graph` is what the host gets."""

    key: str
    values: dict[str, Any]
    graph: dict[str, Any]


@dataclass(frozen=True)
class Sweep:
    """A sweep's definition; see docs/experiments.md for each part."""

    name: str
    graph: dict[str, Any]
    axes: tuple[Axis, ...]
    settings: dict[str, Any] = field(default_factory=dict)  # "set": of every run; {axis} and {run} are filled in
    design: str = "grid"
    rows: tuple[Mapping[str, Any], ...] = ()
    replicates: tuple[str, ...] = ()
    results: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    uploads: dict[str, str] = field(default_factory=dict)
    pareto: dict[str, Any] = field(default_factory=dict)
    interval: str = "t"
    timeout: float = 86_400.0

    @property
    def varied(self) -> tuple[str, ...]:
        """The axes that the table has a row for each value of; the others are repeats."""
        return tuple(axis.name for axis in self.axes if axis.name not in self.replicates)

    def runs(self) -> list[Run]:
        """Every run, in order. Runs whose graphs are the same are one run.

        Raises:
            ValueError: an address leads nowhere, or no combination of values is left.
        """
        runs: dict[str, Run] = {}
        by_name = {axis.name: axis for axis in self.axes}
        for values in combinations(self.axes, self.design, self.replicates, self.rows):
            given = dict(self.settings)
            for name, shown in values.items():
                given.update(by_name[name].settings(shown))
            given = {address: filled(value, values) for address, value in given.items()}
            graph = with_inputs(self.graph, given)
            key = digest([graph, values])
            named = {address: filled(value, {"run": key}) for address, value in given.items()}
            runs.setdefault(key, Run(key, values, with_inputs(self.graph, named)))
        if not runs:
            raise ValueError("the sweep has no run: its design has no row")
        return list(runs.values())

    def scoring(self) -> str:
        """Changes when results or scores are taken otherwise."""
        return digest([self.results, self.scores])

    def check(self) -> None:
        """Raises ValueError where results or scores name no node of the graph, or an axis sets what is not there."""
        for name, described in {**self.results, **self.scores}.items():
            node = described.get("node") or described.get("file") or described.get("pictures")
            if not isinstance(node, str):
                raise ValueError(f'{name!r} must name a node by "node", "file" or "pictures", got {described}')
            find_node(self.graph, node)
        self.runs()

    def to_mapping(self) -> dict[str, Any]:
        """The definition as JSON can hold it; `from_mapping` reads it back."""
        return {
            "name": self.name,
            "graph": self.graph,
            "set": self.settings,
            "axes": {axis.name: {"inputs": list(axis.inputs), "values": list(axis.values)} for axis in self.axes},
            "design": self.design,
            "rows": [dict(row) for row in self.rows],
            "replicates": list(self.replicates),
            "results": self.results,
            "scores": self.scores,
            "uploads": self.uploads,
            "pareto": self.pareto,
            "interval": self.interval,
            "timeout": self.timeout,
        }


def from_mapping(described: Mapping[str, Any], graph: Mapping[str, Any] | None = None) -> Sweep:
    """A Sweep from its JSON, presets filled in; `graph` (API format) where the JSON only names a file.

    Raises:
        ValueError: a part is unknown, missing or of the wrong kind.
    """
    unknown = sorted(set(described) - _KNOWN)
    if unknown:
        raise ValueError(f"the sweep has unknown parts {', '.join(unknown)}; known are {', '.join(sorted(_KNOWN))}")
    full = with_presets(dict(described))
    whole = graph if graph is not None else full.get("graph")
    if not isinstance(whole, Mapping) or "nodes" in whole:
        raise ValueError("the sweep's graph must be in the API format: in ComfyUI, Workflow > Export (API)")
    interval = str(full.get("interval", "t"))
    if interval not in ("t", "bootstrap"):
        raise ValueError(f"interval must be t or bootstrap, got {interval!r}")
    sweep = Sweep(
        name=str(full.get("name", "sweep")),
        graph=dict(whole),
        axes=tuple(axis_from(name, axis) for name, axis in full["axes"].items()),
        settings=dict(full.get("set") or {}),
        design=str(full.get("design", "grid")),
        rows=tuple(full.get("rows") or ()),
        replicates=tuple(full.get("replicates") or ()),
        results=dict(full.get("results") or {}),
        scores=dict(full.get("scores") or {}),
        uploads=dict(full.get("uploads") or {}),
        pareto=dict(full.get("pareto") or {}),
        interval=interval,
        timeout=float(full.get("timeout", 86_400.0)),
    )
    sweep.check()
    return sweep


def read(path: Path) -> dict[str, Any]:
    """A sweep's JSON with the files that it names: its graph read in, the folders' paths made whole.

    Paths are relative to the sweep's file. A graph in the UI format stays so: see `workflow.to_api`. The values of an
    axis with `folders` are the names of that folder's folders.

    Raises:
        ValueError: a file is not there, or is no JSON object; a folder of folders has none.
    """
    described = with_presets(_json(path))
    graph = described.get("graph")
    if isinstance(graph, str):
        described["graph"] = _json(path.parent / graph)
    for score in (described.get("scores") or {}).values():
        if isinstance(score.get("references"), str):
            score["references"] = str((path.parent / score["references"]).absolute())
    uploads = described.get("uploads") or {}
    described["uploads"] = {name: str((path.parent / folder).absolute()) for name, folder in uploads.items()}
    described["axes"] = {name: _listed(axis, path.parent) for name, axis in described["axes"].items()}
    return described


def _listed(axis: Any, here: Path) -> Any:
    if not isinstance(axis, Mapping) or "folders" not in axis:
        return axis
    whole = here / str(axis["folders"])
    names = sorted(entry.name for entry in whole.iterdir() if entry.is_dir()) if whole.is_dir() else []
    if not names:
        raise ValueError(f"an axis takes its values from the folders in {whole}, and there are none")
    return {**{key: value for key, value in axis.items() if key != "folders"}, "values": names}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Which parts of two definitions (`Sweep.to_mapping`) differ so that runs of the one are not runs of the other.

    More or fewer values of an axis is no such change; nor is another way to take the results.
    """

    def parts(definition: Mapping[str, Any]) -> dict[str, str]:
        inputs = {name: axis["inputs"] for name, axis in definition["axes"].items()}
        return {name: digest({**definition, "inputs": inputs}[name]) for name in _WHAT_A_RUN_IS}

    one, two = parts(before), parts(after)
    return [name for name in _WHAT_A_RUN_IS if one[name] != two[name]]


def digest(value: Any) -> str:
    """12 hexadecimal digits of what JSON says of a value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:12]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value
