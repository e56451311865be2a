"""Tables and plots, against sums by hand and against what a picture shows."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from likeness.experiments import plots, table
from likeness.experiments.report import write_report
from likeness.experiments.store import Record


def record(rank: object, subject: str, seed: int, **results: float) -> Record:
    values = {"rank": rank, "subject": subject, "seed": seed}
    return Record(f"{rank}{subject}{seed}", values, "done" if results else "failed", results=results)


RECORDS = [
    *(record(4, "cat", 1, fidelity=0.5, prompt=0.9), record(4, "cat", 2, fidelity=0.7, prompt=0.9)),
    *(record(4, "dog", 1, fidelity=0.8, prompt=0.8), record(4, "dog", 2, fidelity=0.8, prompt=0.8)),
    *(record(16, "cat", 1, fidelity=0.9, prompt=0.4), record(16, "dog", 1), record(16, "cat", 2, fidelity=math.nan)),
]


def test_seeds_are_averaged_first_and_failed_runs_left_out() -> None:
    """Fails if the four runs of rank 4 count as four units: its error would be 0.071, not 0.1."""
    four, sixteen = table.summarise(RECORDS, ["rank"], ["subject", "seed"])
    assert four.values == {"rank": 4} and four.runs == 4
    fidelity = four.figures["fidelity"]
    assert (fidelity.mean, fidelity.error, fidelity.units) == (pytest.approx(0.7), pytest.approx(0.1), 2)
    assert sixteen.figures["fidelity"].mean == 0.9 and math.isnan(sixteen.figures["fidelity"].error)


def test_the_three_formats_say_the_same() -> None:
    """Fails if a column slips, or what is unknown becomes a number."""
    rows = table.summarise(RECORDS, ["rank"], ["subject", "seed"])
    parsed = list(csv.DictReader(io.StringIO(table.to_csv(rows))))
    whole = json.loads(json.dumps(table.to_json(rows), allow_nan=False))
    for line, entry, row in zip(parsed, whole, rows, strict=True):
        assert line["rank"] == str(entry["rank"]) == str(row.values["rank"])
        for name, figure in row.figures.items():
            assert float(line[name]) == entry[name]["mean"] == figure.mean
            assert (line[f"{name} error"] == "") == (entry[name]["error"] is None) == math.isnan(figure.error)
    lines = table.to_markdown(rows).splitlines()
    assert lines[0] == "| rank | runs | fidelity | prompt |" and "| 4 | 4 | 0.70 ± 0.10 [" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_the_report_writes_all_of_it(tmp_path: Path) -> None:
    """Fails if a file is missing, or is no picture; the failed run is in runs.csv with its reason."""
    rows = write_report(
        tmp_path, RECORDS, ["rank"], ["subject", "seed"], pareto={"x": "prompt", "y": "fidelity"}, title="test"
    )
    assert len(rows) == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"runs.csv", "table.md", "table.csv", "table.json", "plot_rank.png", "pareto.png"}
    for name in ("plot_rank.png", "pareto.png"):
        assert Image.open(tmp_path / name).size[0] > 400
    assert (tmp_path / "runs.csv").read_text().count("failed") == 1
    with pytest.raises(ValueError, match="no row has both 'style'"):
        plots.pareto(rows, "style", "fidelity")


def test_the_front_is_drawn_through_the_best_and_markers_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the beaten point is on the front, or the marker's area does not follow the size."""
    seen: list = []
    monkeypatch.setattr(plots, "png", lambda figure: seen.append(figure) or b"")
    records = [record(r, "s", 1, x=x, y=y, mb=mb) for r, x, y, mb in ((1, 1, 3, 1), (2, 2, 2, 2), (3, 1.5, 1.5, 4))]
    rows = table.summarise(records, ["rank"], ["subject", "seed"])
    plots.pareto(rows, "x", "y", "mb")
    axes = seen[0].axes[0]
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    assert np.asarray(front.get_xydata()).tolist() == [[1, 3], [2, 2]]
    areas = [float(points.get_sizes()[0]) for points in axes.collections if hasattr(points, "get_sizes")]
    areas = [area for area in areas if area > 0]
    assert areas == sorted(areas) and (areas[2] - 30) / (areas[0] - 30) == pytest.approx(4)


@pytest.mark.parametrize("values", [[1e-4, 5e-4, 1e-3], ["cosine", "constant"], [4, 8, 64], [True, False]])
def test_error_bars_stand_for_the_interval(values: list, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if bars show the standard error, or a point stands at another value's place."""
    seen: list = []
    monkeypatch.setattr(plots, "png", lambda figure: seen.append(figure) or b"")
    records = [record(v, s, 1, y=i + d) for i, v in enumerate(values) for s, d in (("a", 0.0), ("b", 0.1), ("c", 0.3))]
    rows = table.summarise(records, ["rank"], ["subject", "seed"])
    plots.error_bars(rows, "rank")
    (bars,) = seen[0].axes[0].containers
    segments = bars[2][0].get_segments()
    wanted = sorted(zip(bars[0].get_ydata(), strict=True))
    assert wanted == [(pytest.approx(row.figures["y"].mean),) for row in rows]
    for row in rows:
        figure = row.figures["y"]
        assert any(s[:, 1].tolist() == pytest.approx([figure.low, figure.high]) for s in segments)
