"""The report over HTTP: what /history holds, what lies in the output folder, and what the client script prints."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from likeness.experiments.client import Client, RunFailed
from likeness.tinyworld.truth import write_references

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "tools" / "evaluate_client.py"


@pytest.fixture(scope="module")
def graph(base: Path) -> dict[str, Any]:
    """Two methods' pictures, scored by NIQE, which needs no network, and a report."""
    chance = np.random.default_rng(0)
    body: dict[str, Any] = {}
    for number, method in enumerate(("sharp", "noisy")):
        pictures = []
        for place in range(3):
            noise = chance.normal(0, 4 + 40 * number, (192, 192, 3))
            wave = (
                128
                + 60 * np.sin(np.arange(192) / (7 + place))[:, None, None] * np.cos(np.arange(192) / 11)[None, :, None]
            )
            name = f"report_{method}_{place}.png"
            Image.fromarray((wave + noise).clip(0, 255).astype(np.uint8)).save(base / "input" / name)
            body[f"{method}{place}"] = {"class_type": "LoadImage", "inputs": {"image": name}}
            pictures.append([f"{method}{place}", 0])
        body[f"{method}b"] = {"class_type": "ImageBatch", "inputs": {"image1": pictures[0], "image2": pictures[1]}}
        body[f"{method}c"] = {
            "class_type": "ImageBatch",
            "inputs": {"image1": [f"{method}b", 0], "image2": pictures[2]},
        }
        scored: dict[str, Any] = {
            "pictures": [f"{method}c", 0],
            "niqe": True,
            "brisque": False,
            "aesthetic": False,
            "method": method,
            "subject": "wave",
        }
        if number:
            scored["metrics"] = ["sharp", 0]
        body[method] = {"class_type": "LikenessScoreQuality", "inputs": scored}
    report = {"metrics": ["noisy", 0], "name": "waves", "interval": "t", "units": "auto", "baseline": "noisy"}
    body["report"] = {"class_type": "LikenessReport", "inputs": report}
    return body


def test_history_holds_the_report_as_lists(client: Client, base: Path, graph: dict[str, Any]) -> None:
    """Fails if a value is no list (the page drops it), a float is no JSON, or the files shown are not there."""
    run = client.run(graph)
    shown = run.outputs["report"]
    assert {"text", "metrics", "tests", "rows", "images"} <= set(shown)
    assert all(isinstance(value, list) for value in shown.values())
    json.dumps(shown, allow_nan=False)
    assert [row["method"] for row in shown["rows"]] == ["sharp"] * 3 + ["noisy"] * 3
    means = {figure["method"]: figure for figure in shown["metrics"]}
    values = [row["value"] for row in shown["rows"][:3]]
    assert means["sharp"]["mean"] == pytest.approx(np.mean(values)) and means["sharp"]["direction"] == "lower"
    assert means["sharp"]["error"] == pytest.approx(np.std(values, ddof=1) / 3**0.5)
    (test,) = shown["tests"]
    assert (test["one"], test["other"], test["pairs"]) == ("sharp", "noisy", 3)
    pictures = [Image.open(io.BytesIO(client.view(file))) for file in run.files("report")]
    assert [picture.size for picture in pictures] == [(1320, 792)]
    folder = base / "output" / "likeness" / "waves"
    assert (folder / "report.md").read_text("utf-8") == shown["text"][0]
    assert json.loads((folder / "report.json").read_text("utf-8"))["figures"] == shown["metrics"]
    with pytest.raises(RunFailed, match="no method is called 'nosiy'"):
        client.run(
            {**graph, "report": {**graph["report"], "inputs": {**graph["report"]["inputs"], "baseline": "nosiy"}}}
        )


def script(server: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(CLIENT), "--host", server.address, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_client_script_prints_the_report(server: Any, graph: dict[str, Any], tmp_path: Path) -> None:
    """Fails if the script needs more than the standard library's client, prints something else than the table, or
    ends with 0 where nothing was evaluated."""
    saved = tmp_path / "graph.json"
    saved.write_text(json.dumps(graph), "utf-8")
    table = script(server, "--workflow", str(saved))
    assert table.returncode == 0, table.stderr
    assert "| method | niqe ↓" in table.stdout and "| sharp |" in table.stdout and "## Paired tests" in table.stdout
    lines = script(server, "--workflow", str(saved), "--format", "csv", "--set", "LikenessReport.name=other waves")
    figures = list(csv.DictReader(io.StringIO(lines.stdout)))
    assert [figure["method"] for figure in figures] == ["sharp", "noisy"], lines.stderr
    assert (server.base / "output" / "likeness" / "other_waves" / "report.csv").is_file()
    wrong = script(server, "--workflow", str(saved), "--set", "LikenessReport.baseline=none such")
    assert wrong.returncode == 1 and "none such" in wrong.stderr and not wrong.stdout
    assert script(server, "--workflow", str(tmp_path / "missing.json")).returncode == 2


def test_the_workflow_compares_base_and_taught_model(server: Any, base: Path) -> None:
    """Fails if the shipped graph does not run, the two methods are not paired, the base model is asked for a word that
    it never learnt, or seconds, trained numbers and size are missing beside the scores."""
    write_references("panda", base / "input" / "likeness_quickstart")
    changes = {
        "LikenessTrainLoRA": {"steps": 2, "batch_size": 1, "rank": 4},
        "LikenessEvaluate": {
            "pictures": 2,
            "steps": 2,
            "cfg": 1.0,
            "batch_size": 1,
            "prompts": "a flat {trigger}\na {trigger}",
        },
    }
    sets = [f"--set={kind}.{name}={value}" for kind, inputs in changes.items() for name, value in inputs.items()]
    ran = script(server, "--format", "json", *sets)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    scored = [row for row in found["rows"] if row["metric"] == "subject_similarity"]
    assert [row["prompt"] for row in scored] == ["a flat creature"] * 2 + ["a creature"] * 2 + (
        ["a flat creature"] * 2 + ["a creature"] * 2
    )
    (test,) = found["tests"]
    assert test["pairs"] == 4 and test["other"] == "base"
    costs = {(row["metric"], row["method"]): row["value"] for row in found["rows"] if row["picture"] is None}
    assert {metric for metric, _ in costs} == {"seconds_a_picture", "trained_parameters", "file_size"}
    assert all(value > 0 for value in costs.values()) and len(costs) == 4
