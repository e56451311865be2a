"""The nodes that score prompts, subjects and pairs, on a running server, with tiny random networks in each layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from likeness.devtools import tiny_backbones as tiny
from likeness.devtools import tiny_image_reward
from likeness.experiments.client import Client, RunFailed
from likeness.metrics.backbones import recognise
from likeness.metrics.embed import embedder
from likeness.metrics.image_reward import ImageReward
from likeness.metrics.region import subject_regions

PROMPTS = ["a dog", "a cat on a very long mat in the sun"]


@pytest.fixture(scope="module")
def library(base: Path) -> Path:
    """models/metrics with a folder of each layout, a broken one; clip_vision with one; pictures in input/."""
    folder = base / "models" / "metrics"
    tiny.clip(folder / "tiny-clip")
    tiny.dino(folder / "owner" / "dino-tiny")
    tiny.dinov2(base / "models" / "clip_vision" / "dinov2-tiny")
    tiny.open_clip(folder / "tiny-open-clip")
    tiny.timm(folder / "tiny-timm")
    tiny_image_reward.image_reward(folder / "ImageReward")
    (tiny.dino(folder / "broken") / "model.safetensors").write_bytes(b"<html>")
    chance = np.random.default_rng(0)
    for name, size in (("red", (48, 64)), ("blue", (48, 64)), ("other", (40, 40))):
        levels = chance.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(levels).save(base / "input" / f"score-{name}.png")
    return folder


def picture(base: Path, name: str) -> Tensor:
    levels = torch.from_numpy(np.array(Image.open(base / "input" / f"score-{name}.png")))
    return levels.permute(2, 0, 1)[None].float() / 255


def graph(node: str, inputs: dict[str, Any], model: str = "tiny-clip", family: str = "auto") -> dict[str, Any]:
    load = {name: {"class_type": "LoadImage", "inputs": {"image": f"score-{name}.png"}} for name in ("red", "blue")}
    return {
        **load,
        "other": {"class_type": "LoadImage", "inputs": {"image": "score-other.png"}},
        "both": {"class_type": "ImageBatch", "inputs": {"image1": ["red", 0], "image2": ["blue", 0]}},
        "model": {"class_type": "LikenessLoadMetricModel", "inputs": {"model": model, "family": family}},
        "score": {"class_type": node, "inputs": inputs},
    }


def scored(client: Client, *given: Any, **more: Any) -> list[dict[str, Any]]:
    outputs = client.run(graph(*given, **more)).outputs["score"]
    assert outputs["text"][0].startswith("| method |")
    found: list[dict[str, Any]] = outputs["metrics"]
    return found


def prompt(**inputs: Any) -> dict[str, Any]:
    usual = {"pictures": ["both", 0], "metric_model": ["model", 0], "prompts": "\n".join(PROMPTS), "token": ""}
    return {**usual, "class_noun": "", "pairing": "matched", "score": "cosine", **inputs}


def subject(**inputs: Any) -> dict[str, Any]:
    usual = {"pictures": ["both", 0], "references": ["other", 0], "metric_model": ["model", 0]}
    return {**usual, "compare": "mean of all references", **inputs}


def test_prompts_are_scored_as_the_library_does(client: Client, base: Path, library: Path) -> None:
    """Against the room's functions on the same folder. Fails where prompts and pictures are mixed up, a label or note
    is lost, the token is scored, or rows do not reach /history as JSON."""
    made = embedder(recognise(library / "tiny-clip"))
    pictures = torch.cat([made(picture(base, name)) for name in ("red", "blue")])
    texts, _ = made.texts(PROMPTS)
    want = (pictures * texts).sum(1).tolist()
    rows = scored(client, "LikenessScorePrompt", prompt(method="ours", subject="dog", step=100))
    assert [row["value"] for row in rows] == pytest.approx(want, abs=1e-4)
    assert [row["metric"] for row in rows] == ["clip_t", "clip_t"] and [row["prompt"] for row in rows] == PROMPTS
    assert [row["note"] for row in rows] == ["", "prompt cut to 20 tokens"]
    assert {(row["method"], row["subject"], row["step"]) for row in rows} == {("ours", "dog", 100)}
    assert rows[0]["model"] == "CLIP tiny-clip, 32 bicubic, crop 32"
    named = prompt(prompts="a sks dog", token="sks", class_noun="dog", score="2.5 · max(cos, 0)")
    rows = scored(client, "LikenessScorePrompt", named)
    assert [row["prompt"] for row in rows] == ["a dog", "a dog"] and rows[0]["metric"] == "clip_score"
    assert [row["value"] for row in rows] == pytest.approx(
        [2.5 * max(float(p @ texts[0]), 0) for p in pictures], abs=1e-4
    )
    rows = scored(client, "LikenessScorePrompt", prompt(pairing="all pairs"))
    assert [row["value"] for row in rows] == pytest.approx((pictures @ texts.T).mean(1).tolist(), abs=1e-4)
    assert rows[0]["metric"] == "clip_t_all_pairs"


def test_image_reward_is_a_metric_model(client: Client, base: Path, library: Path) -> None:
    """From its folder to /history. Fails where the loader does not list it, rewards are of other pairs, or a node that
    needs a direction does not say so."""
    backbone = recognise(library / "ImageReward")
    network = backbone.load()
    judge = ImageReward(backbone, lambda: network)  # type: ignore[arg-type, return-value]
    pictures = torch.cat([picture(base, name) for name in ("red", "blue")])
    rows = scored(client, "LikenessScorePrompt", prompt(method="ours"), model="ImageReward")
    assert [row["value"] for row in rows] == pytest.approx(judge(pictures, PROMPTS).tolist(), abs=1e-4)
    assert {(row["metric"], row["model"]) for row in rows} == {("image_reward", "ImageReward, 224 bicubic, crop 224")}
    with pytest.raises(RunFailed, match="together with its prompt"):
        client.run(graph("LikenessScoreSubject", subject(), model="ImageReward"))


@pytest.mark.parametrize(
    ("model", "family", "metric"),
    [
        ("owner/dino-tiny", "auto", "dino"),
        ("clip_vision/dinov2-tiny", "auto", "dinov2"),
        ("tiny-clip", "CLIP", "clip_i"),
        ("tiny-open-clip", "auto", "clip_i"),
        ("tiny-timm", "DINO", "dino"),
    ],
)
def test_subjects_are_scored_with_each_layout(
    client: Client, base: Path, library: Path, model: str, family: str, metric: str
) -> None:
    """As above. Fails where a layout is not found in its folder, misread, or its metric has another's name."""
    folder = library / model if "clip_vision" not in model else base / "models" / model
    made = embedder(recognise(folder, family))
    reference = made(picture(base, "other"))[0]
    want = [float(made(picture(base, name))[0] @ reference) for name in ("red", "blue")]
    rows = scored(client, "LikenessScoreSubject", subject(), model=model, family=family)
    assert [row["value"] for row in rows] == pytest.approx(want, abs=1e-4)
    assert {row["metric"] for row in rows} == {metric}


def test_the_region_alone_is_scored_and_no_subject_is_none(client: Client, base: Path, library: Path) -> None:
    """A mask of the left half for one picture, an empty one for the other. Fails where the mask is ignored, or an empty
    one gives a score."""
    nodes = graph("LikenessScoreSubject", subject(masks=["masks", 0], margin=0.0), model="owner/dino-tiny")
    nodes["none"] = {"class_type": "SolidMask", "inputs": {"value": 0.0, "width": 64, "height": 48}}
    nodes["half"] = {"class_type": "SolidMask", "inputs": {"value": 1.0, "width": 32, "height": 48}}
    paste = {"destination": ["none", 0], "source": ["half", 0], "x": 0, "y": 0, "operation": "add"}
    nodes["left"] = {"class_type": "MaskComposite", "inputs": paste}
    nodes["left picture"] = {"class_type": "MaskToImage", "inputs": {"mask": ["left", 0]}}
    nodes["none picture"] = {"class_type": "MaskToImage", "inputs": {"mask": ["none", 0]}}
    together = {"image1": ["left picture", 0], "image2": ["none picture", 0]}
    nodes["mask pictures"] = {"class_type": "ImageBatch", "inputs": together}
    nodes["masks"] = {"class_type": "ImageToMask", "inputs": {"image": ["mask pictures", 0], "channel": "red"}}
    rows = client.run(nodes).outputs["score"]["metrics"]
    made = embedder(recognise(library / "owner" / "dino-tiny"))
    mask = torch.zeros(1, 48, 64)
    mask[..., :32] = 1
    (region,) = subject_regions(picture(base, "red"), mask, 0.0)
    assert region is not None
    want = float(made(region[None])[0] @ made(picture(base, "other"))[0])
    assert rows[0]["value"] == pytest.approx(want, abs=1e-4) and "region of pictures" in rows[0]["model"]
    assert rows[1]["value"] is None and "no subject" in rows[1]["note"]


def test_pairs_are_scored_and_rows_accumulate(client: Client, base: Path, library: Path) -> None:
    """Fails where rows of an earlier node are lost or come last, or an infinite PSNR reaches JSON."""
    nodes = graph("LikenessScorePairs", {"pictures": ["both", 0], "targets": ["red", 0], "ssim": True, "psnr": True})
    nodes["score"]["inputs"] |= {"lpips": "off", "metrics": ["prompts", 0], "method": "pairs"}
    nodes["prompts"] = {"class_type": "LikenessScorePrompt", "inputs": prompt(method="words")}
    nodes["report"] = {
        "class_type": "LikenessReport",
        "inputs": {
            "metrics": ["score", 0], "name": "scores", "interval": "t", "units": "auto", "baseline": "",
        },
    }  # fmt: skip
    outputs = client.run(nodes).outputs
    rows = {(row["metric"], row["picture"]): row for row in outputs["score"]["metrics"]}
    error = float((picture(base, "blue") - picture(base, "red")).double().square().mean())
    assert rows["psnr", 1]["value"] == pytest.approx(-10 * math.log10(error), abs=1e-4)
    assert rows["psnr", 0]["value"] is None and rows["psnr", 0]["note"] == "equal to its target"
    assert rows["ssim", 0]["value"] == pytest.approx(1, abs=1e-6)
    assert [row["metric"] for row in outputs["report"]["rows"]] == ["clip_t"] * 2 + ["ssim"] * 2 + ["psnr"] * 2


@pytest.mark.parametrize(
    ("node", "inputs", "model", "says"),
    [
        ("LikenessScorePrompt", prompt(prompts="a\nb\nc"), "tiny-clip", "2 pictures and 3 prompts"),
        ("LikenessScorePrompt", prompt(prompts=" \n"), "tiny-clip", "2 pictures and 0 prompts"),
        ("LikenessScorePrompt", prompt(), "owner/dino-tiny", "knows no words"),
        ("LikenessScorePrompt", prompt(token="sks"), "tiny-clip", "no class noun"),
        ("LikenessScorePrompt", prompt(pairing="all pairs", score="2.5 · max(cos, 0)"), "tiny-clip", "matched pairs"),
        ("LikenessScoreSubject", subject(masks=["other", 1]), "tiny-clip", "empty mask of 64 × 64"),
        ("LikenessScoreSubject", subject(), "broken", r"broken/model.safetensors cannot be read"),
        (
            "LikenessScorePairs",
            {"pictures": ["both", 0], "targets": ["other", 0], "ssim": True, "psnr": False, "lpips": "off"},
            "tiny-clip",
            "64 × 48, targets 40 × 40",
        ),
    ],
)
def test_what_cannot_be_scored_is_told(
    client: Client, library: Path, node: str, inputs: dict[str, Any], model: str, says: str
) -> None:
    """Fails where a wrong graph gets a figure, or a message that does not say what to do."""
    with pytest.raises(RunFailed, match=says):
        client.run(graph(node, inputs, model=model))
