"""The shipped workflows that merge, run as saved but for the length of the training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from likeness.experiments.client import Client
from likeness.experiments.workflow import set_inputs, to_api
from likeness.lora.load import load_lora
from likeness.tinyworld.truth import write_references, write_style

FOLDER = Path(__file__).resolve().parents[2] / "workflows"


def test_subject_and_style_are_taught_merged_and_compared(
    client: Client, base: Path, object_info: dict[str, Any]
) -> None:
    """Fails if a wire leads to the wrong LoRA (a trigger word missing, sheets alike), the second workflow does not take
    the files of the first, or shows no report."""
    write_references("bat", base / "input" / "likeness_subject")
    write_style("noto-v1", base / "input" / "likeness_retro", trigger="style")
    graph = to_api(json.loads((FOLDER / "merge_subject_style.json").read_text("utf-8")), object_info)
    set_inputs(graph, "LikenessTrainLoRA", steps=2, learning_rate=0.05, batch_size=1, rank=2)
    set_inputs(graph, "KSampler", steps=2)
    set_inputs(graph, "EmptyLatentImage", batch_size=1)
    run = client.run(graph, timeout=600)
    sheets = {client.view(run.files(node)[0]) for node, body in graph.items() if body["class_type"] == "SaveImage"}
    assert len(sheets) == 3
    loras = base / "models" / "loras" / "likeness"
    merged = load_lora(loras / "subject_in_style.safetensors").metadata
    assert merged["likeness.trigger"] == "sks, style"
    assert "CheckpointSave" not in {body["class_type"] for body in graph.values()}, "it is to be muted"

    graph = to_api(json.loads((FOLDER / "merge_report.json").read_text("utf-8")), object_info)
    run = client.run(graph, timeout=300)
    maps = [client.view(run.files(node)[0]) for node in graph if graph[node]["class_type"] == "LikenessMergeLoRAs"]
    assert [Image.open(io.BytesIO(picture)).size for picture in maps] == [(1400, 900)] * 2 and maps[0] != maps[1]
    linear, ties = (run.text(node) for node, body in graph.items() if body["class_type"] == "PreviewAny")
    assert "Merged 2 LoRAs by linear" in linear and "energy kept 1.0000" in linear
    assert "density 0.3" in ties and "| attn2 | 1, 0.5 |" in ties and r"| output_blocks\.[23]\. | 0.5, 1 |" in ties
    assert "merge_subject" in linear and "merge_style" in linear
