"""The benchmark's targets: which are short, and what is no pair."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    before = set(sys.modules)
    sys.path.insert(0, FOLDER)
    try:
        import adaptive_step

        yield adaptive_step
    finally:
        sys.path.remove(FOLDER)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(FOLDER):
                del sys.modules[name]


@pytest.mark.parametrize(("seconds", "rank", "ok"), [(1.19, 16.0, True), (1.21, 16.0, False), (1.0, 10.0, False)])
def test_slow_steps_and_smaller_ranks_are_short(seconds: float, rank: float, ok: bool, bench: ModuleType) -> None:
    """Fails if a slow step passes, or a fast one that had less to compute."""
    rows = [
        bench.Row(who, "all", False, cpu=[[cost] * 2] * 3, wall=[[cost] * 2] * 3, mean_rank=mean)
        for who, cost, mean in ((bench.FIXED, 1.0, 16.0), (bench.ADAPTIVE, seconds, rank))
    ]
    findings = bench.judge(rows)
    assert all(finding.ok for finding in findings) == ok
    text = bench.render(rows, findings, markdown=False)
    assert text.count("short") == (not ok) and f"{rank:.1f}" in text
