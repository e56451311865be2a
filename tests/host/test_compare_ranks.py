"""The workflow that trains one subject at two fixed ranks and by adaptive rank, run as saved but for its length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from likeness.experiments.client import Client
from likeness.experiments.workflow import set_inputs, to_api
from likeness.tinyworld.truth import write_references

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "compare_ranks.json"


def test_three_loras_and_three_sheets_of_pictures(client: Client, base: Path, object_info: dict[str, Any]) -> None:
    """Fails if a wire leads to the wrong trainer (two files of one size, two sheets alike), or a node is refused."""
    write_references("panda", base / "input" / "likeness_quickstart")
    graph = to_api(json.loads(WORKFLOW.read_text("utf-8")), object_info)
    for trainer in ("LikenessTrainLoRA", "LikenessTrainAdaptiveLoRA"):
        set_inputs(graph, trainer, steps=4, learning_rate=0.05, batch_size=1)
    set_inputs(graph, "KSampler", steps=2)
    set_inputs(graph, "EmptyLatentImage", batch_size=1)
    run = client.run(graph, timeout=600)
    loras = base / "models" / "loras" / "likeness"
    four, large, adaptive = ((loras / f"rank_{name}.safetensors").stat().st_size for name in ("4", "32", "adaptive"))
    assert 6 < large / four < 9 and four < adaptive < large
    sheets = {
        node: client.view(run.files(node)[0]) for node, body in graph.items() if body["class_type"] == "SaveImage"
    }
    assert len(sheets) == len(set(sheets.values())) == 3
