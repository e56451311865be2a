"""Time to quality, the arithmetic: when a curve reaches a figure, whose rate is best, which targets are short."""

from __future__ import annotations

import importlib
import sys
from math import inf
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture(scope="module")
def quality() -> ModuleType:
    sys.path.insert(0, BENCHMARKS)
    try:
        return importlib.import_module("quality_report")
    finally:
        sys.path.remove(BENCHMARKS)


def rung(steps: float, similarity: float, seconds: float | None = None, style: float = 0.8) -> dict[str, float]:
    seconds = steps / 10 if seconds is None else seconds
    more = {"nearest": similarity, "style": style, "style_right": style, "others": 0.9}
    return {"steps": steps, "wall": seconds, "cpu": seconds, "similarity": similarity, **more}


def subject(quality: ModuleType, name: str = "bat", ours: tuple[float, ...] = (0.3, 0.5), style: float = 0.8) -> object:
    """Built in: .4 after 40 s at its better rate. Ours: a rung each 50 steps, 5 s."""
    built_in = {1e-4: rung(400, 0.3, 40.0), 5e-4: rung(400, 0.4, 40.0)}
    curve = [rung(50 * (k + 1), value, style=style) for k, value in enumerate(ours)]
    return quality.Subject(name, rung(0, 0.2), built_in, curve)


@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8),
    st.floats(0, 1),
)
def test_first_crossing_is_that_of_a_fine_grid(values: list[float], goal: float) -> None:
    """Brute force over 20,000 points of numpy's interpolation. Fails if a later crossing, or a rung, were taken."""
    sys.path.insert(0, BENCHMARKS)
    module = importlib.import_module("quality_report")
    sys.path.remove(BENCHMARKS)
    curve = [rung(k * 10, value) for k, value in enumerate(values)]
    found = module.first_at(curve, goal, "steps")
    fine = np.linspace(0, 10 * (len(values) - 1), 20_001)
    there = np.nonzero(np.interp(fine, [r["steps"] for r in curve], values) >= goal)[0]
    if len(there):
        assert found <= fine[there[0]] + 1e-6
        assert np.interp(min(found, fine[-1]), [r["steps"] for r in curve], values) == pytest.approx(
            goal, abs=1e-6
        ) or (found == 0)
    else:
        assert found == inf or goal == pytest.approx(max(values), abs=1e-3)


def test_a_third_of_the_time_is_asked_for(quality: ModuleType) -> None:
    """.4 is half way from .3 at 5 s to .5 at 10 s: 7.5 s of 40. Fails if the worse rate or a whole rung were taken."""
    each, mean = quality.outcomes([subject(quality)])
    assert each.ours("steps") == 75
    assert each.ratio("cpu") == mean.ratio("wall") == pytest.approx(7.5 / 40)
    assert all(finding.ok for finding in quality.judge([subject(quality)]))


def test_never_reached_is_short(quality: ModuleType) -> None:
    """Fails if a run that never gets there were left out of the median."""
    findings = quality.judge([subject(quality, ours=(0.3, 0.35))] * 2 + [subject(quality)])
    assert {f.name: f.ok for f in findings}["cpu-time-to-quality:median"] is False
    text = quality.render([subject(quality, ours=(0.3, 0.35))], findings, "a plan", markdown=True)
    assert "never" in text and "| short |" in text


def test_prompts_must_be_followed_as_well(quality: ModuleType) -> None:
    """Fails if likeness bought with the style that was asked counted."""
    unfaithful = [subject(quality, name, style=0.5) for name in ("bat", "egg")]
    assert {f.name: f.ok for f in quality.judge(unfaithful)}["style-against-built-in"] is False


def test_the_mean_curve_is_of_shared_steps(quality: ModuleType) -> None:
    """Fails if rungs of different step counts were averaged."""
    curves = [[rung(0, 0.2), rung(50, 0.4), rung(100, 0.6)], [rung(0, 0.4), rung(100, 0.8)]]
    assert [(r["steps"], r["similarity"]) for r in quality.mean_curve(curves)] == [
        (0, pytest.approx(0.3)),
        (100, pytest.approx(0.7)),
    ]
