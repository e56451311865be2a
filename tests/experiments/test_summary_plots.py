"""The pictures of a summary: which are drawn, with which front, and that nothing of them stays in memory."""

from __future__ import annotations

import gc
import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from likeness.experiments import plots as sweep_plots
from likeness.experiments import summary_plots
from likeness.experiments.summary import Column, summarise
from likeness.experiments.summary_plots import column_of, plots
from likeness.metrics.rows import Row


def rows(metric: str, means: dict[str, float], steps: tuple[int | None, ...] = (None,)) -> list[Row]:
    chance = np.random.default_rng(0)
    return [
        Row(metric, mean + float(chance.normal(0, 0.01)), method, "dog", "p", seed, step)
        for method, mean in means.items()
        for step in steps
        for seed in range(4)
    ]


def test_what_is_drawn_follows_from_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a Pareto plot is drawn of one score, of methods that share none, or a curve of one step."""
    for name in ("bars", "pareto", "error_bars"):
        monkeypatch.setattr(summary_plots, name, lambda *_, **__: b"")
    subject, prompt = rows("subject_similarity", {"a": 0.6, "b": 0.7}), rows("clip_t", {"a": 0.3, "b": 0.25})
    stepped = rows("clip_t", {"a": 0.3}, (50, 100))
    assert set(plots(summarise(subject))) == {"bars"}
    assert set(plots(summarise([*subject, *prompt]))) == {"bars", "pareto"}
    assert set(plots(summarise([*subject, *stepped]))) == {"bars", "steps"}


def test_the_pictures_are_of_one_size_and_not_empty() -> None:
    """Fails if they cannot be one batch, or nothing is drawn."""
    both = plots(summarise([row for metric in ("clip_t", "subject_similarity") for row in
                            rows(metric, {"a": 0.3, "b": 0.2}, (50, 100))]))  # fmt: skip
    assert set(both) == {"bars", "pareto", "steps"}
    opened = [Image.open(io.BytesIO(data)) for data in both.values()]
    assert {picture.size for picture in opened} == {(1320, 792)}
    assert all(np.asarray(picture.convert("L")).std() > 5 for picture in opened)


def test_lower_is_better_turns_the_front(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a distance is drawn as if more of it were better: then the worst method would be on the front alone."""
    drawn: list[Any] = []

    def record(points: Any) -> list[int]:
        drawn.append(list(points))
        return list(range(len(points)))

    monkeypatch.setattr(sweep_plots, "pareto_front", record)
    table = [
        *rows("seconds_a_picture", {"near": 0.2, "far": 0.9}),
        *rows("subject_similarity", {"near": 0.3, "far": 0.3}),
    ]
    plots(summarise(table), prompt="subject_similarity", subject="seconds_a_picture")
    (x, _), (x2, _) = drawn[0]
    assert (x, x2) == pytest.approx((-0.2, -0.9), abs=0.05)


def test_a_metric_that_was_not_measured_is_named() -> None:
    """Fails if a typing error draws some other metric."""
    summary = summarise(rows("clip_t", {"a": 0.1}))
    with pytest.raises(ValueError, match=r"no row is of 'clip-t'.*clip_t"):
        column_of(summary, "clip-t", ())
    assert column_of(summary, "", ("clip_t",)) == Column("clip_t")
    assert column_of(summary, "", ("dino",)) is None


def test_figures_are_freed() -> None:
    """Fails if pyplot, or a cycle with the canvas, keeps every figure of a long sweep."""
    from matplotlib.figure import Figure

    summary = summarise(rows("clip_t", {"a": 0.1, "b": 0.2}))
    gc.collect()
    before = sum(isinstance(thing, Figure) for thing in gc.get_objects())
    assert plots(summary)
    gc.collect()
    assert sum(isinstance(thing, Figure) for thing in gc.get_objects()) <= before
