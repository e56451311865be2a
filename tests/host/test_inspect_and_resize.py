"""The shipped workflow that looks into a LoRA and makes it smaller, on a running server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from likeness.experiments.client import RunFailed
from likeness.experiments.workflow import set_inputs, to_api
from likeness.lora.files import read_lora, write_safetensors
from likeness.lora.keys import to_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "inspect_and_resize_lora.json"
BLOCK = "diffusion_model.input_blocks.1.1.transformer_blocks.0"


def test_the_workflow_makes_a_smaller_file_that_means_nearly_the_same(
    client: Any, server: Any, object_info: dict[str, Any]
) -> None:
    """Fails if the graph does not run as shipped, the saved file keeps less than asked, or nothing is shown; or if a
    file with unknown keys is not refused with its first name, and listed when kept."""
    torch.manual_seed(0)
    tensors = {}
    for name in ("attn1.to_q", "attn2.to_k", "ff.net.2"):
        fall = torch.logspace(0, -3, 8)[:, None]
        tensors |= {
            f"{BLOCK}.{name}.lora_up.weight": torch.randn(32, 8),
            f"{BLOCK}.{name}.lora_down.weight": fall * torch.randn(8, 24),
            f"{BLOCK}.{name}.alpha": torch.tensor(4.0),
        }
    folder = server.base / "models" / "loras"
    metadata = {"likeness.trigger": "sks", "likeness.res_blocks": "[2, 2, 2, 2]"}
    save_lora(folder / "inspected.safetensors", LoraTensors(tensors, metadata), "kohya", "fp32")
    graph = to_api(json.loads(WORKFLOW.read_text("utf-8")), object_info)
    set_inputs(graph, "LikenessLoadLoRA", lora_name="inspected.safetensors")
    set_inputs(graph, "LikenessSaveLoRA", filename="small", dtype="fp32")
    run = client.run(graph)
    before, after = (to_deltas(load_lora(folder / f"{name}.safetensors")) for name in ("inspected", "small"))
    for layer, delta in before.items():
        dense = delta.dense().double()
        lost = float((dense - after[layer].dense().double()).square().sum() / dense.square().sum())
        assert 0 < lost <= 0.05 and after[layer].rank < 8
    assert read_lora(folder / "small.safetensors")[1]["likeness.trigger"] == "sks"
    pictures = [client.view(file) for file in run.files()]
    assert [Image.open(io.BytesIO(picture)).size for picture in pictures] == [(1400, 900)] * 2
    assert pictures[0] != pictures[1]
    shown = "".join(run.text(node) for node in graph if graph[node]["class_type"] == "PreviewAny")
    assert "Stable Diffusion" in shown and "| file: trigger | sks |" in shown and "Resized to energy 0.95" in shown

    write_safetensors(folder / "strange.safetensors", {**tensors, "who.knows": torch.ones(1)})
    graph = {
        "1": {"class_type": "LikenessLoadLoRA", "inputs": {"lora_name": "strange.safetensors"}},
        "2": {"class_type": "LikenessInspectLoRA", "inputs": {"lora": ["1", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 1]}},
    }
    with pytest.raises(RunFailed, match=r"the first is who\.knows"):
        client.run(graph)
    graph["1"]["inputs"]["unknown_keys"] = "keep"
    assert "- `who.knows`" in client.run(graph).text("3")
