"""The benchmark's arithmetic: ratios of neighbours, and which targets are short."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

EQUAL = {"attention": {"networks": 0.0, "effect": 0.1, "exports": 0.001, "unmatched": 0}}


@pytest.fixture(scope="module")
def report() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "benchmark_report", Path(__file__).parents[2] / "benchmarks" / "report.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def rows(report: ModuleType, **seconds: float) -> list:
    """A row for each contender; seconds a step by `who` initial: B(uilt-in), P(eft), L(ikeness), F(loor)."""
    cost = {"B": 2.0, "P": 1.0, "L": 1.0, "F": 0.95} | seconds
    extra = {"B": 900.0, "P": 300.0, "L": 250.0, "F": 100.0}
    made = []
    for who, targets in (
        ("built-in", "all"),
        ("peft+diffusers", "all"),
        ("Likeness", "all"),
        ("peft+diffusers", "attention"),
        ("Likeness", "attention"),
        ("floor", "none"),
    ):
        for checkpointing in (False,) if who == "floor" else (False, True):
            key = who[0].upper()
            times = [[cost[key] * busy] * 2 for busy in (1, 5, 2)]  # other work slows all alike
            made.append(
                report.Row(
                    who,
                    targets,
                    checkpointing,
                    wall=times,
                    cpu=times,
                    extra_mib=extra[key],
                    losses=[1.0],
                    names=["a"] if key in "PL" else [],
                )
            )
    return made


def test_ratio_is_of_neighbours_in_a_round(report):
    """Fails if medians are taken before dividing: then the round that was five times as slow for one side counts."""
    slow = report.Row("a", "all", False, cpu=[[2.0, 2.0], [2.0], [20.0]])
    fast = report.Row("b", "all", False, cpu=[[1.0, 1.0], [1.0], [10.0]])
    assert report.ratio(slow, fast) == 2.0
    fast.cpu = [[1.0], [4.0], [10.0]]
    assert report.ratio(slow, fast) == 2.0  # of 2, 0.5 and 2; medians apart would give 2/4


def test_all_targets_met(report):
    """Fails if a target is read the wrong way round."""
    found = report.judge(rows(report), EQUAL)
    assert [finding.line() for finding in found if not finding.ok] == []
    assert len(found) == 16


@pytest.mark.parametrize(
    ("change", "short"),
    [
        ({"B": 1.88}, "speed-against-built-in:all:plain 1.88 >=1.9 short"),
        ({"P": 0.98}, "speed-against-peft+diffusers:attention:checkpointing 0.98 >=1 short"),
        ({"F": 0.89}, "seconds-against-floor:attention:plain 1.12 <=1.1 short"),
    ],
)
def test_short_target_is_named(report, change, short):
    """Fails if a slow contender passes, or if the line is not `name figure target ok|short`."""
    assert short in [finding.line() for finding in report.judge(rows(report, **change), EQUAL)]


def test_unequal_work_is_short(report):
    """Fails if a contender that trains other layers, or from another loss, still counts as matched."""
    made = rows(report)
    made[0].losses = [1.001]
    next(row for row in made if row.who == "Likeness").names = ["a", "b"]
    short = {finding.name for finding in report.judge(made, EQUAL) if not finding.ok}
    assert short == {"step-1-loss-spread", "layers-not-shared"}


def test_tables_render_both_ways(report):
    """Fails if a row or a target is left out of the output."""
    made = rows(report)
    findings = report.judge(made, EQUAL)
    machine = {"machine": "m", "load": 0.1, "versions": "v"}
    for markdown in (False, True):
        text = report.render(made, findings, EQUAL, machine, "plan", markdown=markdown)
        assert text.count("peft+diffusers") >= 4 and all(finding.name in text for finding in findings)
