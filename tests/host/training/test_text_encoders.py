"""The text encoder of a real checkpoint, trained over HTTP: what comes out, what is saved, what is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from likeness.devtools.server import Server
from likeness.experiments.client import Client

Graph = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def clip_output(object_info: dict[str, Any]) -> int:
    """Place of `clip` among the outputs of Train LoRA."""
    return int(object_info["LikenessTrainLoRA"]["output_name"].index("clip"))


def with_text(graph: Graph, rate: float = 1e-2, which: str = "all", pattern: str = "") -> Graph:
    """The graph, with its text encoders trained."""
    inputs = {"text_encoder_learning_rate": rate, "text_encoders": which, "text_encoder_pattern": pattern}
    graph["text"] = {"class_type": "LikenessTextEncoderOptions", "inputs": inputs}
    if "options" in graph["train"]["inputs"]:
        graph["text"]["inputs"]["options"] = graph["train"]["inputs"]["options"]
    graph["train"]["inputs"]["options"] = ["text", 0]
    return graph


def read_by(graph: Graph, clip: tuple[str, int]) -> Graph:
    """The graph, its prompts read by another CLIP."""
    for node in ("positive", "negative"):
        graph[node]["inputs"]["clip"] = list(clip)
    return graph


def test_the_saved_file_draws_what_was_trained_and_the_base_is_as_it_was(
    client: Client,
    training: Callable[..., Graph],
    picture_of: Callable[..., Graph],
    picture: Callable[..., np.ndarray],
    draw: Callable[..., np.ndarray],
    clip_output: int,
    server: Server,
    base: Path,
) -> None:
    """MODEL and CLIP from the node, and from the host's LoraLoader, draw one picture in every naming.

    Fails if a layer of the text encoder is lost or misnamed, samples break training, or the base's words changed.
    """
    before = draw()
    graph = with_text(training(steps=6, learning_rate=3e-3, run_name="words", samples={}, options={}))
    graph = read_by(picture_of(graph, ("train", 0), "trained"), ("train", clip_output))
    for naming in ("kohya", "diffusers", "comfy"):
        inputs = {"lora": ["train", 1], "filename": f"likeness/words-{naming}", "naming": naming, "dtype": "fp32"}
        graph[f"save-{naming}"] = {"class_type": "LikenessSaveLoRA", "inputs": inputs}
    run = client.run(graph)
    trained = picture(run, "trained")

    with safe_open(base / "models" / "loras" / "likeness" / "words-kohya.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("lora_te_") and name.endswith("lora_up.weight")]  # noqa: SIM118
        learnt = {name for name in names if bool(file.get_tensor(name).any())}
        assert file.metadata()["ss_text_encoder_lr"] == "0.01"
    assert len(names) == 12 * 6
    # The others have no gradient here: this encoder's own output projections are zero.
    assert len([name for name in learnt if "out_proj" in name or "fc2" in name]) == 12 * 2

    log_before = len(server.log_text())
    pictures = {}
    for naming in ("kohya", "diffusers", "comfy"):
        load = {"model": ["model", 0], "clip": ["model", 1], "lora_name": f"likeness/words-{naming}.safetensors"}
        load |= {"strength_model": 1.0, "strength_clip": 1.0}
        drawn = picture_of({"lora": {"class_type": "LoraLoader", "inputs": load}}, ("lora", 0))
        pictures[naming] = picture(client.run(read_by(drawn, ("lora", 1))), "picture")
        assert np.abs(pictures[naming].astype(int) - trained.astype(int)).max() <= (0 if naming == "comfy" else 1)
    model_alone = {"lora": {"class_type": "LoraLoader", "inputs": {**load, "strength_clip": 0.0}}}
    other = picture(client.run(read_by(picture_of(model_alone, ("lora", 0)), ("lora", 1))), "picture")
    assert not np.array_equal(other, trained), "the text encoder's LoRA changes nothing, so this would compare nothing"
    log = server.log_text()[log_before:].lower()
    assert "not loaded" not in log
    assert np.array_equal(draw(anew=True), before)


def test_resumed_is_unbroken(client: Client, training: Callable[..., Graph], base: Path) -> None:
    """2 steps and then 2 more give the bytes of 4."""
    options = {"targets": "custom", "target_pattern": r"attn2\.to_[kv]$"}
    for name, steps in (("words-whole", 4), ("words-parts", 2)):
        client.run(with_text(training(run_name=name, steps=steps, options=options), 1e-3, "custom", r"layers\.11\."))
    graph = with_text(training(steps=4, resume_from="words-parts", options=options), 1e-3, "custom", r"layers\.11\.")
    client.run(graph)
    tensors = []
    for name in ("words-whole", "words-parts"):
        with safe_open(base / "output" / "likeness" / name / f"{name}.safetensors", "pt") as file:
            tensors.append({key: file.get_tensor(key).numpy().tobytes() for key in file.keys()})  # noqa: SIM118
    assert tensors[0] == tensors[1]
    assert any("clip_l.transformer.text_model.encoder.layers.11.mlp.fc2" in name for name in tensors[0])
