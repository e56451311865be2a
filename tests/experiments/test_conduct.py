"""A sweep's run: what is missing, what is written, what happens to hosts that die. No host: see tests/host."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from likeness.experiments.conduct import conduct, failed
from likeness.experiments.engine import Threads, spread
from likeness.experiments.store import Record, Store, missing
from likeness.experiments.sweep import Sweep, from_mapping


def sweep(graph: dict[str, Any], values: list[int], **more: Any) -> Sweep:
    axes = {"colour": {"inputs": "colour.value", "values": values}}
    return from_mapping({"graph": graph, "axes": axes, "results": {"shown": {"node": "text"}}, **more})


def test_runs_are_written_scored_and_not_run_again(graph: Any, fake_engine: Any, outcome: Any, tmp_path: Path) -> None:
    """Fails if a done run is run twice, its number is another run's, or a host's file name leads out of the folder."""
    engine = fake_engine(["a"], lambda slot, run: outcome(run))
    ended = conduct(sweep(graph, [1, 2]), Store(tmp_path), engine)
    assert [r.results["shown"] for r in ended.records] == [1.0, 2.0] and ended.left == 0
    pictures = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*.png"))
    assert pictures == sorted(Path("files") / r.key / "save_000.png" for r in ended.records)
    again = fake_engine(["a"], lambda slot, run: outcome(run))
    ended = conduct(sweep(graph, [1, 2, 3]), Store(tmp_path), again)
    assert len(again.started) == 1 and [r.results["shown"] for r in ended.records] == [1.0, 2.0, 3.0]


def test_stopped_in_the_middle_it_goes_on(graph: Any, fake_engine: Any, outcome: Any, tmp_path: Path) -> None:
    """Fails if what was done is lost, or a run that was under way counts as done; the engine is told what was busy."""

    def stop(slot: str, run: Any) -> Any:
        if run.values["colour"] == 3:
            raise KeyboardInterrupt
        return outcome(run)

    engine = fake_engine(["a"], stop)
    with pytest.raises(KeyboardInterrupt):
        conduct(sweep(graph, [1, 2, 3, 4]), Store(tmp_path), engine)
    assert engine.closed is not None
    left = missing(sweep(graph, [1, 2, 3, 4]).runs(), Store(tmp_path))
    assert [run.values["colour"] for run in left] == [3, 4]


def test_failed_runs_keep_the_hosts_words_and_are_tried_again_when_asked(
    graph: Any, fake_engine: Any, outcome: Any, tmp_path: Path
) -> None:
    """Fails if an error ends the sweep, is forgotten, or is tried again unasked."""
    error = {"message": "CUDA out of memory", "node_type": "Train", "node_id": "3", "traceback": "…"}

    def one_fails(slot: str, run: Any) -> Any:
        bad = {**outcome(run), "status": "failed", "error": error, "pictures": {}}
        return bad if run.values["colour"] == 1 else outcome(run)

    ended = conduct(sweep(graph, [1, 2]), Store(tmp_path), fake_engine(["a"], one_fails))
    assert [(r.status, r.error) for r in ended.records] == [("failed", error), ("done", {})]
    assert failed(ended.records) == ended.records[:1]
    good = fake_engine(["a"], lambda slot, run: outcome(run))
    assert conduct(sweep(graph, [1, 2]), Store(tmp_path), good).records[0].status == "failed" and not good.started
    assert conduct(sweep(graph, [1, 2]), Store(tmp_path), good, retry_failed=True).records[0].status == "done"
    assert len(good.started) == 1


def test_another_definition_is_noticed(graph: Any, fake_engine: Any, outcome: Any, tmp_path: Path) -> None:
    """Fails if runs of two graphs meet in one table; `accept_change` runs all anew."""
    engine = fake_engine(["a"], lambda slot, run: outcome(run))
    conduct(sweep(graph, [1]), Store(tmp_path), engine)
    graph["picture"]["inputs"]["width"] = 32
    with pytest.raises(ValueError, match="whose graph is another"):
        conduct(sweep(graph, [1]), Store(tmp_path), engine)
    assert len(engine.started) == 1
    assert len(conduct(sweep(graph, [1]), Store(tmp_path), engine, accept_change=True).records) == 1
    assert len(engine.started) == 2


def test_other_results_are_taken_from_what_was_kept(graph: Any, fake_engine: Any, outcome: Any, tmp_path: Path) -> None:
    """Fails if old numbers stay under a new meaning, or the run is run again for them."""
    engine = fake_engine(["a"], lambda slot, run: outcome(run, '{"a": [0, 7.5], "b": "loss 2.5e-1"}'))
    ended = conduct(sweep(graph, [1], results={"x": {"node": "text", "json": "a.1"}}), Store(tmp_path), engine)
    assert ended.records[0].results == {"seconds": 1.0, "x": 7.5}
    results = {"x": {"node": "text", "pattern": r"loss ([\d.e-]+)"}}
    ended = conduct(sweep(graph, [1], results=results), Store(tmp_path), engine)
    assert ended.records[0].results["x"] == 0.25 and len(engine.started) == 1
    ended = conduct(
        sweep(graph, [1], results=results),
        Store(tmp_path),
        engine,
        scorer=lambda finished: {"red": float(finished.pictures("save")[0, 0].mean())},
        scoring="red 1",
    )
    assert ended.records[0].results["red"] == 1.0 and len(engine.started) == 1


def test_what_cannot_be_scored_is_said_and_is_not_a_result(
    graph: Any, fake_engine: Any, outcome: Any, tmp_path: Path
) -> None:
    """Fails if one run without a number stops all others, or counts as 0."""
    engine = fake_engine(["a"], lambda slot, run: outcome(run, "none" if run.values["colour"] == 1 else ""))
    ended = conduct(sweep(graph, [1, 2]), Store(tmp_path), engine)
    one, two = ended.records
    assert one.status == "done" and not one.results and "no shown in what node 'text' showed" in one.error["message"]
    assert two.results["shown"] == 2.0


def test_the_next_free_host_takes_the_next_run_and_a_dead_ones_run_goes_to_another(
    graph: Any, fake_engine: Any, outcome: Any
) -> None:
    """Fails if a dead host gets more runs, its run is lost or recorded as failed, or a run is executed twice."""
    runs, seen = sweep(graph, list(range(1, 8))).runs(), Counter[int]()
    lost = {"status": "lost", "error": {"message": "connection reset"}, "pictures": {}}

    def b_dies(slot: str, run: Any) -> Any:
        if slot == "b":
            engine.dead.add("b")
            return lost
        return outcome(run)

    engine = fake_engine(["a", "b"], b_dies)
    left = spread(runs, engine, lambda run, got: seen.update({run.values["colour"]: got["status"] == "done"}))
    assert left == [] and seen == Counter(range(1, 8))
    assert [slot for slot, _ in engine.started].count("b") == 1


def test_no_host_left_and_a_run_that_kills_hosts(graph: Any, fake_engine: Any, outcome: Any) -> None:
    """Fails if it waits for ever without hosts, or one run takes down every host there is."""
    runs = sweep(graph, [1, 2, 3, 4]).runs()
    lost = {"status": "lost", "error": {"message": "connection reset"}, "pictures": {}}

    def one_kills(slot: str, run: Any) -> Any:
        if run.values["colour"] == 1:
            engine.dead.add(slot)
            return lost
        return outcome(run)

    ended: list[tuple[int, str]] = []
    engine = fake_engine(["a"], one_kills)
    assert spread(runs, engine, lambda run, got: ended.append((run.values["colour"], got["status"]))) == runs
    engine = fake_engine(["a", "b", "c"], one_kills)
    assert spread(runs, engine, lambda run, got: ended.append((run.values["colour"], got["status"]))) == []
    assert sorted(ended) == [(1, "failed"), (2, "done"), (3, "done"), (4, "done")]


def test_an_address_where_nobody_listens_is_a_lost_run(graph: Any) -> None:
    """Fails if a refused connection is the run's fault: a real thread, a port of which nobody listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}/"
    engine = Threads([address, address.rstrip("/")], timeout=5)
    assert len(engine.slots) == 1
    assert spread(sweep(graph, [1]).runs(), engine, lambda run, got: pytest.fail("it ran")) != []


def test_a_record_survives_json(tmp_path: Path) -> None:
    """Fails if a field is lost on the way to the disk."""
    record = Record(
        "k", {"rank": 4}, "done", "h", "t", 1.5, {}, {"1": "x"}, {"2": ["f.png"]}, {"3": 9}, {"y": 0.5}, "s"
    )
    Store(tmp_path).write(record)
    assert Store(tmp_path).record("k") == record
    assert json.loads((tmp_path / "runs" / "k.json").read_text())["results"] == {"y": 0.5}
