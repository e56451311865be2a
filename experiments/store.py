"""A sweep's folder: its definition, one JSON a run, the runs' files. Killed at any moment, it holds whole runs only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..lora.atomic import write_whole
from .sweep import Run, Sweep, changes, from_mapping

DONE, FAILED = "done", "failed"


@dataclass(frozen=True)
class Record:
    """What is known of one run: `runs/<key>.json`.

    Attributes:
        key, values: the run's.
        status: "done" or "failed".
        error: of a failed run, what the host said: message, node_type, node_id, traceback.
        host: where it ran; `started`: when, ISO 8601 in UTC; `seconds`: how long.
        texts: node id -> what it showed as text.
        files: node id -> its pictures, paths relative to the sweep's folder.
        sizes: node id -> bytes of the file whose path it showed.
        results: column -> number.
        scoring: `Sweep.scoring` of the results.
    """

    key: str
    values: dict[str, Any]
    status: str
    host: str = ""
    started: str = ""
    seconds: float = 0.0
    error: dict[str, str] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    results: dict[str, float] = field(default_factory=dict)
    scoring: str = ""


class Store:
    """Reads and writes a sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)

    @property
    def definition(self) -> Path:
        return self.folder / "sweep.json"

    def open(self, sweep: Sweep, accept_change: bool = False) -> None:
        """Make the folder this sweep's; one that is there already goes on.

        Raises:
            ValueError: it holds runs of another definition, and `accept_change` does not say that this is meant.
        """
        if self.definition.exists():
            before = json.loads(self.definition.read_text("utf-8"))
            differ = changes(before, sweep.to_mapping())
            if differ and not accept_change:
                raise ValueError(
                    f"{self.folder} holds a sweep whose {' and '.join(differ)} is another: its runs would be compared "
                    "with runs of something else. Take another folder, or say --changed to run all of it anew here "
                    "(the old runs stay on the disk and leave the table)"
                )
        write_json(self.definition, sweep.to_mapping())

    def sweep(self) -> Sweep:
        """The sweep that this folder is of. Raises ValueError where it is of none."""
        if not self.definition.exists():
            raise ValueError(f"{self.folder} is no sweep's folder: there is no {self.definition.name} in it")
        return from_mapping(json.loads(self.definition.read_text("utf-8")))

    def record(self, key: str) -> Record | None:
        """What is known of a run, or None."""
        path = self.folder / "runs" / f"{key}.json"
        return Record(**json.loads(path.read_text("utf-8"))) if path.exists() else None

    def records(self, runs: Sequence[Run]) -> list[Record]:
        """The records of those runs that there are, in the runs' order."""
        found = (self.record(run.key) for run in runs)
        return [record for record in found if record is not None]

    def write(self, record: Record) -> None:
        write_json(self.folder / "runs" / f"{record.key}.json", asdict(record))

    def keep(self, key: str, pictures: Mapping[str, Sequence[tuple[str, bytes]]]) -> dict[str, list[str]]:
        """Write a run's pictures, {node: [(name, bytes)]}; gives their paths for the record."""
        kept: dict[str, list[str]] = {}
        for node, files in pictures.items():
            for index, (name, content) in enumerate(files):
                safe = "".join(letter if letter.isalnum() else "_" for letter in node)
                path = Path("files") / key / f"{safe}_{index:03}{Path(name).suffix[:8] or '.bin'}"
                write_whole(self.folder / path, [content])
                kept.setdefault(node, []).append(path.as_posix())
        return kept


def missing(runs: Sequence[Run], store: Store, retry_failed: bool = False) -> list[Run]:
    """The runs that are not done; failed ones only where they are to be tried again."""
    left = []
    for run in runs:
        record = store.record(run.key)
        if record is None or (record.status == FAILED and retry_failed):
            left.append(run)
    return left


def write_json(path: Path, value: Any) -> None:
    """JSON, whole or not at all."""
    write_whole(path, [(json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()])
