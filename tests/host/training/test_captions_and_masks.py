"""Masks beside pictures, caption variants and loss options over HTTP in a real ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from likeness.experiments.client import Client, RunFailed

Graphs = Callable[..., dict[str, dict[str, Any]]]

CAPTIONS = {
    "place_trigger": "front",
    "prefix": "",
    "suffix": ", flat",
    "find": "",
    "replace_with": "",
    "separator": ",",
    "shuffle": True,
    "keep_tags": 1,
    "tag_dropout": 0.2,
    "variants": 4,
    "seed": 0,
}
LOSS = {
    "loss": "huber",
    "huber_c": 0.1,
    "huber_schedule": "snr",
    "weighting": "debiased",
    "min_snr_gamma": 5.0,
    "p2_gamma": 1.0,
    "p2_k": 1.0,
    "timestep_sampling": "mode",
    "timestep_mean": 0.0,
    "timestep_std": 1.0,
    "timestep_mode_scale": 1.29,
    "timestep_shifting": "resolution",
    "timestep_shift": 3.0,
    "noise_offset": 0.05,
    "pyramid_levels": 4,
    "pyramid_discount": 0.3,
    "input_perturbation": 0.1,
    "unmasked_weight": 0.1,
}


def losses(base: Path, run: str) -> list[float]:
    lines = (base / "output" / "likeness" / run / "log.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="session")
def masked(base: Path) -> str:
    """A folder of two pictures with their right halves masked out, one by alpha and one by a file beside it."""
    folder = base / "input" / "masked"
    folder.mkdir(parents=True, exist_ok=True)
    picture = np.full((64, 64, 4), 255, dtype=np.uint8)
    picture[:, :32, :3] = (200, 60, 30)
    picture[:, 32:] = (20, 220, 40, 0)
    Image.fromarray(picture).save(folder / "a.png")
    Image.fromarray(picture[..., :3]).save(folder / "b.png")
    Image.fromarray(picture[..., 3]).save(folder / "b-masklabel.png")
    (folder / "a.txt").write_text("red, half, plain", encoding="utf-8")
    return folder.name


def test_masks_come_from_alpha_and_from_files(client: Client, training: Graphs, masked: str, base: Path) -> None:
    """Fails if masks do not reach the loss, a mask file is trained on, or composite is not the default."""
    common = {"folder": masked, "flip": False}
    for name, alpha in (("as-mask", {"alpha": "mask"}), ("composite", {"alpha": "composite"}), ("unsaid", {})):
        client.run(training(run_name=name, steps=2, data={**common, **alpha}))
    assert losses(base, "composite") == losses(base, "unsaid") != losses(base, "as-mask")
    (base / "input" / masked / "c-masklabel.png").write_bytes((base / "input" / masked / "b.png").read_bytes())
    with pytest.raises(RunFailed, match=r"c-masklabel\.png is the mask of a picture 'c'"):
        client.run(training(run_name="alone", steps=1, data=common))
    (base / "input" / masked / "c-masklabel.png").unlink()


def test_caption_variants_are_trained_on(client: Client, training: Graphs, masked: str, base: Path) -> None:
    """Fails if the changed captions are not shown, variants are not encoded, or the run is not the seed's alone."""

    def graph(name: str, **rules: Any) -> dict[str, dict[str, Any]]:
        made = training(run_name=name, steps=4, data={"folder": masked, "flip": False}, batch_size=1)
        inputs = {"dataset": ["data", 0], **CAPTIONS, **rules}
        made["captions"] = {"class_type": "LikenessCaptions", "inputs": inputs}
        made["train"]["inputs"]["dataset"] = ["captions", 0]
        return made

    run = client.run(graph("variants"))
    (text,) = run.outputs["captions"]["text"]
    assert "a.png: sks, red, half, plain, flat" in text.splitlines()
    assert "    sks, " in text
    client.run(graph("variants-b"))
    client.run(graph("others", seed=1))
    client.run(graph("none", shuffle=False, tag_dropout=0.0))
    first = losses(base, "variants")
    assert first == losses(base, "variants-b")
    assert first != losses(base, "others") and first != losses(base, "none")
    with pytest.raises(RunFailed, match=r"a\.png is longer than the text encoder"):
        client.run(graph("long", suffix=" very long" * 80))


def test_loss_options_go_before_what_they_follow(client: Client, training: Graphs, base: Path) -> None:
    """Fails if an option does not reach the configuration, breaks on a real model, or the earlier node wins."""
    made = training(run_name="loss-options", steps=2, options={"min_snr_gamma": 5.0, "noise_offset": 0.5})
    made["loss"] = {"class_type": "LikenessLossOptions", "inputs": {**LOSS, "options": ["options", 0]}}
    made["train"]["inputs"]["options"] = ["loss", 0]
    client.run(made)
    config = json.loads((base / "output" / "likeness" / "loss-options" / "config.json").read_text("utf-8"))
    assert {name: config[name] for name in LOSS} == {**LOSS, "min_snr_gamma": 0.0}
    assert all(np.isfinite(losses(base, "loss-options")))

    made["loss"]["inputs"].update(weighting="min-snr", min_snr_gamma=3.0)
    made["train"]["inputs"]["run_name"] = "loss-min-snr"
    client.run(made)
    config = json.loads((base / "output" / "likeness" / "loss-min-snr" / "config.json").read_text("utf-8"))
    assert (config["weighting"], config["min_snr_gamma"]) == ("none", 3.0)


def test_what_is_not_chosen_is_chosen_by_the_model(client: Client, training: Graphs, base: Path) -> None:
    """Rate 0 is written down: 2e-3, the highest, for so short a run. A prompt without a weighting has none, as before.

    Fails if old prompts changed, if options did not override the node, or if a run began at rate 0.
    """

    def ran(name: str, **inputs: Any) -> tuple[float, str, float]:
        client.run(training(run_name=name, steps=2, batch_size=1, **inputs))
        config = json.loads((base / "output" / "likeness" / name / "config.json").read_text("utf-8"))
        return config["learning_rate"], config["weighting"], config["min_snr_gamma"]

    assert ran("auto", learning_rate=0.0, weighting="auto") == (0.002, "auto", 0.0)
    assert ran("as-before", learning_rate=1e-4)[1] == "none"
    assert losses(base, "auto")[0] != losses(base, "as-before")[0]
    chosen = ran("min-snr", learning_rate=1e-4, weighting="auto", options={"min_snr_gamma": 5.0})
    assert chosen == (1e-4, "auto", 5.0)
