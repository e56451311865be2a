"""The shipped training workflows: accepted by the host's prompt check, and run where a model is at hand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from likeness.experiments.client import Client
from likeness.experiments.workflow import set_inputs, to_api
from likeness.tinyworld import truth

FOLDER = Path(__file__).resolve().parents[3] / "workflows"
LARGE = ("train_your_subject", "train_subject_sdxl", "train_subject_flux")
SMALL = tuple(
    name for name in ("train_style", "train_two_subjects", "train_low_memory") if (FOLDER / f"{name}.json").is_file()
)
FILES = {
    "ckpt_name": "checkpoints",
    "unet_name": "diffusion_models",
    "clip_name1": "text_encoders",
    "clip_name2": "text_encoders",
    "vae_name": "vae",
}


def graph_of(name: str, object_info: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A shipped workflow as the page would send it."""
    return to_api(json.loads((FOLDER / f"{name}.json").read_text("utf-8")), object_info)


@pytest.fixture(params=LARGE)
def large(request: pytest.FixtureRequest, object_info: dict[str, Any], base: Path) -> Iterator[dict[str, Any]]:
    """A workflow of a model that is not here; empty files stand in for its own, so that combos offer their names."""
    graph = graph_of(request.param, object_info)
    made = []
    for node in graph.values():
        for name, value in node["inputs"].items():
            path = base / "models" / FILES[name] / value if name in FILES else None
            if path is not None and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                made.append(path)
    assert made
    yield graph
    for path in made:
        path.unlink(missing_ok=True)


def test_the_prompt_check_accepts_it(client: Client, large: dict[str, Any]) -> None:
    """Fails (Rejected, with the host's reasons) on a missing input, a wrong type, or a value that a node refuses."""
    prompt = client.queue(large)
    client.request("/queue", {"delete": [prompt]})
    client.interrupt()  # or it has begun, and ends at the empty file
    deadline = time.monotonic() + 60
    while any(client.queue_state().values()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(client.queue_state().values())


@pytest.mark.parametrize("name", SMALL)
def test_it_runs_on_the_tiny_model(client: Client, object_info: dict[str, Any], base: Path, name: str) -> None:
    """With its own reference pictures, fewer steps: fails if any node of it fails, or its pictures are not drawn."""
    folder = base / "input"
    if name == "train_style":
        truth.write_style("noto-v1", folder / "likeness_style", 4)
    else:
        truth.write_references("doughnut", folder / "likeness_first")
        truth.write_references("duck", folder / "likeness_second", trigger="ohwx")
    graph = graph_of(name, object_info)
    set_inputs(graph, "LikenessTrainLoRA", steps=2)
    set_inputs(graph, "KSampler", steps=2)
    if any(node["class_type"] == "LikenessSamplePrompts" for node in graph.values()):
        set_inputs(graph, "LikenessSamplePrompts", every=2, steps=2)
    run = client.run(graph)
    saved = [node for node, entry in graph.items() if entry["class_type"] == "SaveImage"]
    assert len(saved) >= 2 and all(run.files(node) for node in saved)
    assert list((base / "models" / "loras" / "likeness").glob(f"{name.removeprefix('train_')}*.safetensors"))
