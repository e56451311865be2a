"""Train Adaptive LoRA over HTTP, in a real ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from likeness.experiments.client import Client

Graphs = Callable[..., dict[str, dict[str, Any]]]


def test_the_hosts_loader_draws_what_was_trained(
    client: Client, training: Graphs, picture_of: Graphs, picture: Any, base: Path
) -> None:
    """Fails if the node does not run, Λ is not in the file, or map and table are not of its ranks."""
    graph = training(options={"targets": "attention"})
    train = graph["train"]
    train["class_type"] = "LikenessTrainAdaptiveLoRA"
    del train["inputs"]["rank"]
    train["inputs"] |= {
        "run_name": "adaptive",
        "steps": 6,
        "learning_rate": 0.02,
        "initial_rank": 4,
        "target_rank": 2,
        "rank_lr": 0.2,
        "rank_weight": 1e-5,
        "entropy_weight": 1e-3,
        "export_truncation": "quantile",
        "export_energy": 0.99,
    }
    graph["map"] = {"class_type": "SaveImage", "inputs": {"images": ["train", 6], "filename_prefix": "map"}}
    graph["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["train", 7]}}
    graph["save"] = {
        "class_type": "LikenessSaveLoRA",
        "inputs": {"lora": ["train", 1], "filename": "adaptive/one", "naming": "kohya", "dtype": "fp32"},
    }
    run = client.run(picture_of(graph, ("train", 0)))
    trained = picture(run, "picture").astype(int)
    table = json.loads(run.text("text"))
    ranks = [line["exported_rank"] for line in table["layers"]]
    assert len({*ranks}) > 1 and picture(run, "map").shape[1] == 1024
    assert set(table["mean_rank_by_role"]) == {"self-attention", "cross-attention"}

    with safe_open(base / "models" / "loras" / "adaptive" / "one.safetensors", "pt") as file:
        ups = sorted(name for name in file.keys() if name.endswith("lora_up.weight"))  # noqa: SIM118
        there = [file.get_tensor(name).shape[1] for name in ups]
        alphas = [float(file.get_tensor(name.replace("lora_up.weight", "alpha"))) for name in ups]
    assert sorted(there) == sorted(ranks) and there == alphas

    load = {"model": ["model", 0], "lora_name": "adaptive/one.safetensors", "strength_model": 1.0}
    again = picture_of({"load": {"class_type": "LoraLoaderModelOnly", "inputs": load}}, ("load", 0))
    loaded = picture(client.run(again), "picture")
    untouched = picture(client.run(picture_of({}, name="plain")), "plain")
    assert np.abs(loaded - trained).max() <= 1
    assert np.abs(untouched - trained).max() > 1
