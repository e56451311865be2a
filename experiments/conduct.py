"""A sweep from its definition to its table: what is missing is run, scored and written down, one run at a time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from .client import Client
from .engine import Engine, Outcome, spread
from .scoring import PICTURES, Finished, Scorer, scorer_of
from .store import DONE, FAILED, Record, Store, missing
from .sweep import Run, Sweep

logger = logging.getLogger(__name__)

OnRun = Callable[[int, int, Record], None]  # number of the run, how many there are, what came out


@dataclass(frozen=True)
class Ended:
    """How a sweep stands when it ends: records in the runs' order, and runs left because no host was."""

    records: list[Record]
    left: int


def conduct(
    sweep: Sweep,
    store: Store,
    engine: Engine,
    *,
    scorer: Scorer | None = None,
    scoring: str = "",
    retry_failed: bool = False,
    accept_change: bool = False,
    on_run: OnRun | None = None,
) -> Ended:
    """Run what is missing of a sweep. Killed at any moment and called again, it goes on with what is missing.

    Args:
        scorer: finished run -> results; those that the definition names unless given.
        scoring: a word for the scorer that changes when it does: runs that were scored otherwise are scored again.
        retry_failed: run failed runs again.
        accept_change: see `Store.open`.
        on_run: called after each run.

    Raises:
        ValueError: the folder is another sweep's; a run cannot be made from the graph.
    """
    store.open(sweep, accept_change)
    runs = sweep.runs()
    number = {run.key: index + 1 for index, run in enumerate(runs)}
    wanted = f"{sweep.scoring()} {scoring}".strip()
    take = scorer or scorer_of(sweep)
    score_again(sweep, store, take, wanted)

    def done(run: Run, outcome: Outcome) -> None:
        record = _record(run, outcome, store)
        if record.status == DONE:
            record = scored(record, run, store.folder, take, wanted)
        store.write(record)
        if on_run is not None:
            on_run(number[run.key], len(runs), record)

    left = spread(missing(runs, store, retry_failed), engine, done)
    return Ended(store.records(runs), len(left))


def score_again(sweep: Sweep, store: Store, scorer: Scorer, scoring: str) -> list[Record]:
    """Score the runs whose results were taken otherwise, from what was kept of them; gives all records."""
    records = []
    for run in sweep.runs():
        record = store.record(run.key)
        if record is None:
            continue
        if record.status == DONE and record.scoring != scoring:
            record = scored(replace(record, results={}, error={}), run, store.folder, scorer, scoring)
            store.write(record)
        records.append(record)
    return records


def scored(record: Record, run: Run, folder: Path, scorer: Scorer, scoring: str) -> Record:
    """The record with its results; where it cannot be scored, with the reason, and without the results."""
    try:
        results = {name: float(value) for name, value in scorer(Finished(folder, run.graph, record)).items()}
        return replace(record, results={"seconds": record.seconds, **results}, scoring=scoring)
    except (ValueError, KeyError) as error:
        logger.warning("run %s is done but cannot be scored: %s", run.key, error)
        return replace(record, results={}, error={"message": f"not scored: {error}"}, scoring="")


def upload(client: Client, uploads: dict[str, str]) -> None:
    """Put folders of this machine into a host's input folder: {name there: folder here}, captions and folders in them
    included.

    Raises:
        ValueError: a folder is not there or has no picture.
    """
    for name, folder in uploads.items():
        files = sorted(Path(folder).rglob("*")) if Path(folder).is_dir() else []
        if not any(file.suffix.lower() in PICTURES for file in files):
            raise ValueError(f"there is no picture to upload in {folder}")
        for file in files:
            if file.suffix.lower() in (*PICTURES, ".txt"):
                client.upload(file, str(PurePosixPath(name, *file.relative_to(folder).parent.parts)))


def api_graph(graph: dict[str, Any], client: Client | None) -> dict[str, Any]:
    """A graph in the API format, whichever of the two formats it was saved in; the UI format needs a host's schemas.

    Raises:
        ValueError: it is in the UI format, and there is no host to ask.
    """
    if not isinstance(graph.get("nodes"), list):
        return graph
    if client is None:
        raise ValueError("the graph is in the UI format, which only a host can convert: name one with --host")
    from .workflow import to_api

    return json.loads(json.dumps(to_api(graph, client.object_info())))  # type: ignore[no-any-return]


def _record(run: Run, outcome: Outcome, store: Store) -> Record:
    known = {name: outcome[name] for name in ("host", "started", "seconds", "error") if name in outcome}
    if outcome["status"] != DONE:
        return Record(run.key, run.values, FAILED, **known)
    files = store.keep(run.key, outcome["pictures"])
    return Record(run.key, run.values, DONE, **known, files=files, texts=outcome["texts"], sizes=outcome["sizes"])


def failed(records: Sequence[Record]) -> list[Record]:
    """Those that failed, and those that could not be scored."""
    return [record for record in records if record.status == FAILED or record.error]
