"""The goal lines of compare_ranks.py, on records whose answer is known."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from likeness.experiments.store import Record
from likeness.experiments.table import summarise


@pytest.fixture()
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import compare_ranks

    return compare_ranks


def records(adaptive: float, megabytes: float) -> list[Record]:
    """Rank 4 at .60, rank 8 at .70 ± .02 with 2 MB, three subjects and two seeds; adaptive rank as given."""
    methods = [
        ("fixed", "rank 4", 0.6, 1.0),
        ("fixed", "rank 8", 0.7, 2.0),
        ("adaptive", "adaptive 4", adaptive, megabytes),
    ]
    return [
        Record(
            f"{method}{subject}{seed}",
            {"family": family, "method": method, "subject": subject, "seed": seed},
            "done",
            results={"fidelity": fidelity + offset, "megabytes": size},
        )
        for family, method, fidelity, size in methods
        for subject, offset in (("a", -0.02), ("b", 0.0), ("c", 0.02))
        for seed in (1, 2)
    ]


@pytest.mark.parametrize(
    ("adaptive", "megabytes", "met"),
    [(0.70, 0.7, True), (0.67, 0.79, True), (0.64, 0.7, False), (0.75, 0.81, False)],  # the interval begins at .650
)
def test_the_goal_is_the_best_fixed_ranks_interval_and_40_percent_of_its_file(
    bench: ModuleType, adaptive: float, megabytes: float, met: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if the smallest rank counts as the best, seeds count as subjects, or one half of the goal is enough."""
    found = records(adaptive, megabytes)
    rows = summarise(found, ("family", "method"), ("subject", "seed"))
    (goal,) = bench.goals(rows, found)
    assert goal.ok is met and goal.figure == int(met)
    said = capsys.readouterr().out
    assert "best fixed rank: rank 8" in said and f"adaptive-4:share-of-best-fixed-file {megabytes / 2:.3g}" in said


def test_without_adaptive_rank_there_is_no_goal(bench: ModuleType) -> None:
    """Fails if what was not run counts as met."""
    found = [record for record in records(0.7, 0.7) if record.values["family"] == "fixed"]
    assert bench.goals(summarise(found, ("family", "method"), ("subject", "seed")), found) == []
