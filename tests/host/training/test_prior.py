"""Prior preservation in a real ComfyUI: class pictures drawn once, kept, used, and the model as it was afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from likeness.experiments.client import Client, RunFailed

Graphs = Callable[..., dict[str, dict[str, Any]]]
Draw = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def runs(base: Path) -> Path:
    """Where the node writes runs."""
    return base / "output" / "likeness"


def keeping(graph: dict[str, dict[str, Any]], **inputs: Any) -> dict[str, dict[str, Any]]:
    """The training graph, and what is to be kept."""
    shown = {
        "mode": "prior prediction",
        "weight": 1.0,
        "prompts": "a picture of a {class}\na shaded picture of a place",
        "pictures": 3,
        "seed": 11,
        "steps": 2,
        "cfg": 3.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        **inputs,
    }
    graph["keep"] = {"class_type": "LikenessPriorPreservation", "inputs": shown}
    graph["train"]["inputs"]["prior"] = ["keep", 0]
    return graph


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


def test_class_pictures_are_drawn_once(client: Client, training: Graphs, runs: Path, draw: Draw) -> None:
    """Fails if the second run draws again, another seed finds the first's pictures, or the model is left changed."""
    before = draw()
    client.run(keeping(training(run_name="kept", steps=3, learning_rate=1e-2)))
    (folder,) = (runs / "prior").iterdir()
    latents = folder / "latents.safetensors"
    made = latents.stat().st_mtime_ns
    tensors = load_file(latents)
    assert [tensors[name].shape for name in sorted(tensors)] == [(4, 8, 8)] * 3
    assert json.loads((folder / "prior.json").read_text("utf-8"))["prompts"] == [
        "a picture of a creature",
        "a shaded picture of a place",
    ]
    assert Image.open(folder / "pictures.png").size == (128, 128)
    lines = logged(runs / "kept")
    assert lines[0]["prior_loss"] < 1e-9 < lines[2]["prior_loss"]

    client.run(keeping(training(run_name="kept-again", steps=2), mode="generated pictures"))
    assert latents.stat().st_mtime_ns == made and len(list((runs / "prior").iterdir())) == 1
    assert logged(runs / "kept-again")[0]["prior_loss"] > 1e-3  # the pictures themselves, not the base's answer
    assert np.array_equal(draw(anew=True), before)

    client.run(keeping(training(run_name="kept-other", steps=1), seed=12))
    assert len(list((runs / "prior").iterdir())) == 2


def test_without_prompts_the_training_pictures_serve(client: Client, training: Graphs, runs: Path) -> None:
    """Fails if prior prediction needs pictures, or its captions are not those with the class noun."""
    client.run(keeping(training(run_name="kept-own", steps=2), prompts=""))
    assert logged(runs / "kept-own")[1]["prior_loss"] > 0


def test_class_pictures_of_a_dataset(client: Client, training: Graphs, runs: Path) -> None:
    """Fails if the user's own class pictures are not taken, or are asked for in vain."""
    graph = keeping(training(run_name="kept-class", steps=1), mode="class pictures")
    with pytest.raises(RunFailed, match="wire a dataset"):
        client.run(graph)
    graph["class"] = {**graph["data"], "inputs": {**graph["data"]["inputs"], "trigger": "", "repeats": 2}}
    graph["keep"]["inputs"]["dataset"] = ["class", 0]
    client.run(graph)
    assert logged(runs / "kept-class")[0]["prior_loss"] > 1e-3
