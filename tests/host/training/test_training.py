"""Training over HTTP in a real ComfyUI: what is left on disk, cancel, resume, errors, and the model afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from likeness.devtools.server import Server
from likeness.experiments.client import Client, Event, Interrupted, RunFailed

Graphs = Callable[..., dict[str, dict[str, Any]]]
Draw = Callable[..., np.ndarray]


@pytest.fixture(scope="session")
def runs(base: Path) -> Path:
    """Where the node writes runs."""
    return base / "output" / "likeness"


def lora_bytes(folder: Path) -> bytes:
    """The trained tensors of a run, without the metadata (which has the time in it)."""
    with safe_open(folder / f"{folder.name}.safetensors", "pt") as file:
        whole = b"".join(name.encode() + file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys()))
    return hashlib.sha256(whole).digest()  # short, or pytest compares megabytes line by line where they differ


def test_a_run_leaves_everything_in_its_folder(client: Client, training: Graphs, runs: Path) -> None:
    """Fails if a file is missing, the log has not a line a step, or progress, text or preview is not shown."""
    run = client.run(training(run_name="first", steps=4, options={"checkpoint_every": 2}, samples={}))

    folder = runs / "first"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert json.loads((folder / "config.json").read_text("utf-8"))["learning_rate"] == 1e-3
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == ["step-000002", "step-000004"]
    assert Image.open(folder / "samples" / "step-000004.png").size == (128, 64)
    with safe_open(folder / "first.safetensors", "pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_up.weight" in names
    assert "sks" in json.dumps(metadata)
    assert metadata["ss_network_dim"] == "4"
    steps = [event.data for event in run.events if event.kind == "progress" and event.data.get("node") == "train"]
    assert steps[-1]["value"] == steps[-1]["max"] == 4
    assert any(event.kind == "preview" and b"JFIF" in event.payload[:200] for event in run.events)


def test_two_runs_in_a_row_with_one_seed_are_the_same_bytes(client: Client, training: Graphs, runs: Path) -> None:
    """Fails if anything random is not decided by the seed, or a second run finds the model other than the first."""
    for name in ("twin", "twin-b"):
        client.run(training(run_name=name, steps=3))
    assert lora_bytes(runs / "twin") == lora_bytes(runs / "twin-b")


def test_a_taken_name_gets_a_number(client: Client, training: Graphs, runs: Path) -> None:
    """Fails if queueing again writes over the first run."""
    client.run(training(run_name="taken", steps=1))
    before = lora_bytes(runs / "taken")
    client.run(training(run_name="taken", steps=2))
    assert (runs / "taken-2" / "taken-2.safetensors").is_file()
    assert lora_bytes(runs / "taken") == before


def test_resumed_is_unbroken(client: Client, training: Graphs, runs: Path) -> None:
    """2 steps and then 3 more give the bytes of 5: fails if optimizer state, order or noise does not go on.

    At a constant rate: where it falls to zero by the last step, a run that is lengthened is another run.
    """
    constant = {"schedule": "constant"}
    client.run(training(run_name="whole", steps=5, options=constant))
    client.run(training(run_name="parts", steps=2, options=constant))
    client.run(training(steps=5, resume_from="parts", options=constant))
    assert lora_bytes(runs / "parts") == lora_bytes(runs / "whole")
    lines = (runs / "parts" / "log.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5]


def test_cancel_keeps_a_checkpoint_and_gives_the_model_back(
    client: Client, training: Graphs, runs: Path, draw: Draw
) -> None:
    """Fails if cancel is not noticed within a step or two, nothing is kept, or a weight of the model changed."""
    before = draw()
    cancelled_at = 0

    def cancel(event: Event) -> None:
        nonlocal cancelled_at
        if event.kind == "progress" and event.data.get("node") == "train" and event.data["value"] >= 3:
            if not cancelled_at:
                client.interrupt()
            cancelled_at = event.data["value"]

    with pytest.raises(Interrupted):
        client.run(training(run_name="cancelled", steps=100_000), on_event=cancel)

    (checkpoint,) = (runs / "cancelled" / "checkpoints").iterdir()
    kept = json.loads((checkpoint / "state.json").read_text("utf-8"))["step"]
    assert 3 <= kept < 1000
    assert np.array_equal(draw(anew=True), before)
    client.run(training(steps=kept + 1, resume_from="cancelled"))
    assert (runs / "cancelled" / "cancelled.safetensors").is_file()


def test_a_diverging_run_says_what_to_do_and_gives_the_model_back(client: Client, training: Graphs, draw: Draw) -> None:
    """Fails if NaN is trained on in silence, or the error leaves adapters in the model."""
    before = draw()
    with pytest.raises(RunFailed, match=r"(?i)learning rate"):
        client.run(training(run_name="diverging", steps=50, learning_rate=1e6, options={"max_grad_norm": 0.0}))
    assert np.array_equal(draw(anew=True), before)


def test_a_caption_that_does_not_fit_is_refused(client: Client, training: Graphs) -> None:
    """Fails if the host's silent cutting in chunks goes unnoticed."""
    long = "a very " + "long " * 90 + "{trigger} {class}"
    with pytest.raises(RunFailed, match=r"2\.png.*94 tokens.*limit is 75"):
        client.run(training(data={"caption_template": long}))


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True, "targets": "all", "gradient_accumulation": 2},
        {"precision": "bf16", "min_snr_gamma": 5.0, "noise_offset": 0.05},
        {"targets": "custom", "target_pattern": r"attn2\.to_[kv]$", "caption_dropout": 0.5, "schedule": "cosine"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options(client: Client, training: Graphs, draw: Draw, options: dict[str, Any]) -> None:
    """Fails if an option breaks on the host's own model, or leaves something behind in it (precision, hooks)."""
    before = draw()
    client.run(training(steps=2, options=options, run_name=next(iter(options))))
    assert np.array_equal(draw(anew=True), before)


def test_saved_file_in_the_hosts_loader_draws_the_trained_models_picture(
    client: Client, training: Graphs, picture_of: Graphs, picture: Callable[..., np.ndarray], server: Server
) -> None:
    """Fails if what is saved is not what was trained: a lost layer, a wrong name, scale or transpose."""
    graph = picture_of(training(run_name="applied", steps=8, learning_rate=3e-3), ("train", 0), "trained")
    for naming in ("kohya", "diffusers", "comfy"):
        inputs = {"lora": ["train", 1], "filename": f"likeness/{naming}", "naming": naming, "dtype": "fp32"}
        graph[f"save-{naming}"] = {"class_type": "LikenessSaveLoRA", "inputs": inputs}
    graph = picture_of(graph, ("model", 0), "untrained")
    run = client.run(graph)
    trained = picture(run, "trained")
    assert not np.array_equal(trained, picture(run, "untrained"))

    log_before = len(server.log_text())
    for naming in ("kohya", "diffusers", "comfy"):
        load = {"model": ["model", 0], "lora_name": f"likeness/{naming}.safetensors", "strength_model": 1.0}
        loaded = client.run(picture_of({"lora": {"class_type": "LoraLoaderModelOnly", "inputs": load}}, ("lora", 0)))
        difference = np.abs(picture(loaded, "picture").astype(int) - trained.astype(int)).max()
        assert difference <= (0 if naming == "comfy" else 1), naming
    log = server.log_text()[log_before:].lower()
    assert "lora key not loaded" not in log
    assert "not loaded diffusion_model" not in log


def test_a_lora_that_is_applied_already_stays_in_force(
    client: Client, training: Graphs, picture_of: Graphs, runs: Path
) -> None:
    """Training on a model with a LoRA gives other losses than without: fails if loading drops the model's patches."""
    graph = training(run_name="base-lora", steps=3, learning_rate=1e-2)
    inputs = {"lora": ["train", 1], "filename": "likeness/patch", "naming": "comfy", "dtype": "fp32"}
    graph["save"] = {"class_type": "LikenessSaveLoRA", "inputs": inputs}
    client.run(graph)
    first = json.loads((runs / "base-lora" / "log.jsonl").read_text("utf-8").splitlines()[0])["loss"]

    graph = training(run_name="on-lora", steps=1)
    load = {"model": ["model", 0], "lora_name": "likeness/patch.safetensors", "strength_model": 20.0}
    graph["patched"] = {"class_type": "LoraLoaderModelOnly", "inputs": load}
    graph["train"]["inputs"]["model"] = ["patched", 0]
    client.run(graph)
    second = json.loads((runs / "on-lora" / "log.jsonl").read_text("utf-8").splitlines()[0])["loss"]
    assert abs(second - first) > 1e-4 * abs(first)
