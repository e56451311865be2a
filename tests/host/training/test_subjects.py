"""Several subjects in one run, and what the run tells of itself, in a real ComfyUI."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

from likeness.experiments.client import Client

Graphs = Callable[..., dict[str, dict[str, Any]]]


def test_two_subjects_in_one_lora(client: Client, training: Graphs, base: Path) -> None:
    """Fails if a subject's captions or row of the sheet are lost, the log has no figures, or no curve is shown live."""
    graph = training(
        run_name="two",
        steps=4,
        options={"ema_decay": 0.9},
        samples={"prompts": "a {trigger}\na red {trigger}\na {trigger} {class}\na house", "every": 4},
    )
    other = {**graph["data"]["inputs"], "trigger": "ohwx", "class_noun": "food", "flip": False}
    graph["other"] = {"class_type": "LikenessDataset", "inputs": other}
    graph["both"] = {
        "class_type": "LikenessCombineDatasets",
        "inputs": {"balance": True, "dataset_1": ["data", 0], "dataset_3": ["other", 0]},
    }
    graph["train"]["inputs"]["dataset"] = ["both", 0]
    graph["curve"] = {"class_type": "SaveImage", "inputs": {"images": ["train", 2], "filename_prefix": "curve"}}
    run = client.run(graph)

    folder = base / "output" / "likeness" / "two"
    assert Image.open(folder / "samples" / "step-000004.png").size == (
        3 * 64,
        3 * 64,
    )  # two rows, and one for the house
    with safe_open(folder / "two.safetensors", "pt") as file:
        metadata = json.dumps(file.metadata())
    assert "ohwx" in metadata and "sks" in metadata
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    assert all(line["gradient_norm"] > 0 for line in lines)
    assert 0 < lines[0]["delta_norm"] < lines[-1]["delta_norm"]
    assert any(name.startswith("loss_") and name.endswith("_sigma") for line in lines for name in line)
    checkpoint = folder / "checkpoints" / "step-000004"
    raw = load_file(checkpoint / "average.safetensors")
    used = load_file(checkpoint / "lora.safetensors")
    assert any(np.array_equal(used[name], value) for name in used for value in (raw["average.1"], raw["average.0"]))
    (file,) = run.files("curve")
    assert Image.open(io.BytesIO(client.view(file))).size == (1024, 640)
    live = [
        Image.open(io.BytesIO(event.payload[event.payload.index(b"\xff\xd8") :]))
        for event in run.events
        if event.kind == "preview"
    ]
    assert any(picture.width == 896 and picture.height > 896 for picture in live)
