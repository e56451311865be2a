"""Adapter Options and Find Learning Rate over HTTP, in a real ComfyUI."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from likeness.experiments.client import Client

Graphs = Callable[..., dict[str, dict[str, Any]]]

ALGORITHMS = {"dora": "dora_scale", "loha": "hada_w1_a", "lokr": "lokr_w1", "oft": "oft_blocks"}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_hosts_loader_draws_what_was_trained(
    algorithm: str, client: Client, training: Graphs, picture_of: Graphs, picture: Any, base: Path
) -> None:
    """Fails if a file of some algorithm, saved in kohya's naming, is another LoRA to the host's own loader."""
    graph = training(run_name=algorithm, steps=2, learning_rate=0.02, options={"targets": "all"})
    graph["kind"] = {
        "class_type": "LikenessAdapterOptions",
        "inputs": {
            "algorithm": algorithm,
            "init": "kaiming",
            "rank_stabilised": False,
            "dropout": 0.0,
            "lokr_factor": -1,
            "layer_rules": "time_embed rank=0\nattn2 rank=8 lr=0.5",
            "options": graph["train"]["inputs"]["options"],
            "model": ["model", 0],
        },
    }
    graph["train"]["inputs"]["options"] = ["kind", 0]
    graph["save"] = {
        "class_type": "LikenessSaveLoRA",
        "inputs": {"lora": ["train", 1], "filename": f"{algorithm}/one", "naming": "kohya", "dtype": "fp32"},
    }
    run = client.run(picture_of(graph, ("train", 0)))
    trained = picture(run, "picture").astype(int)
    report = run.text("kind")
    assert f"algorithm {algorithm}" in report and "left out" in report and "rank 8, learning rate × 0.5 (" in report

    with safe_open(base / "models" / "loras" / algorithm / "one.safetensors", "pt") as file:
        names = list(file.keys())
        assert file.metadata()["ss_network_module"] == "lycoris.kohya"
    assert any(name.startswith("lora_unet_down_blocks_0_") and name.endswith(ALGORITHMS[algorithm]) for name in names)
    assert not any("time_embed" in name for name in names)

    load = {"model": ["model", 0], "lora_name": f"{algorithm}/one.safetensors", "strength_model": 1.0}
    again = picture_of({"load": {"class_type": "LoraLoaderModelOnly", "inputs": load}}, ("load", 0))
    loaded = picture(client.run(again), "picture")
    untouched = picture(client.run(picture_of({}, name="plain")), "plain")
    assert np.abs(loaded - trained).max() <= 1
    assert np.abs(untouched - trained).max() > 1


def test_a_rate_is_found(client: Client, training: Graphs, base: Path) -> None:
    """Fails if the node does not run, leaves a run behind, shows nothing, or does not heed the weighting."""
    graph = training(options={"targets": "attention"})
    before = sorted((base / "output").rglob("*"))
    train = graph.pop("train")["inputs"]
    kept = {name: train[name] for name in ("model", "clip", "vae", "dataset", "rank", "alpha", "batch_size", "seed")}
    graph["find"] = {
        "class_type": "LikenessFindLearningRate",
        "inputs": {**kept, "options": train["options"], "steps": 24, "lowest_rate": 1e-5, "highest_rate": 10.0},
    }
    graph["text"] = {"class_type": "PreviewAny", "inputs": {"source": ["find", 2]}}
    run = client.run(graph)
    assert len(run.files("find")) == 1
    table = run.text("text")
    suggested = float(table.rsplit("suggested: ", 1)[1])
    assert 1e-5 < suggested < 10.0
    assert sorted((base / "output").rglob("*")) == before
    graph["find"]["inputs"]["weighting"] = "auto"
    assert client.run(graph).text("text") != table
