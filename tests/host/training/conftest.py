"""Small training graphs for the running server."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from likeness.experiments.client import Client, Run

Graph = dict[str, dict[str, Any]]
CHECKPOINT = "tiny-unet.safetensors"


@pytest.fixture(scope="session")
def subject(base: Path) -> str:
    """A folder of four small pictures, two of them captioned; its name below the input folder."""
    folder = base / "input" / "subject"
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for number in range(4):
        picture = Image.new("RGB", (64, 64), tuple(chance.randrange(256) for _ in range(3)))
        ImageDraw.Draw(picture).ellipse((8 + 4 * number, 12, 40 + 4 * number, 50), fill=(230, 60, 30))
        picture.save(folder / f"{number}.png")
        if number < 2:
            (folder / f"{number}.txt").write_text("a flat picture of a sks", encoding="utf-8")
    return folder.name


@pytest.fixture(scope="session")
def training(subject: str) -> Callable[..., Graph]:
    """training(steps=…, …) gives a graph with `model` (the checkpoint), `data` and `train`.

    Inputs of the training options go into `options`, of the sample prompts into `samples`.
    """

    def build(
        options: Mapping[str, Any] | None = None,
        samples: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        checkpoint: str = CHECKPOINT,
        **inputs: Any,
    ) -> Graph:
        graph: Graph = {
            "model": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
            "data": {
                "class_type": "LikenessDataset",
                "inputs": {
                    "folder": subject,
                    "trigger": "sks",
                    "class_noun": "creature",
                    "caption_template": "a picture of {trigger} {class}",
                    "resolution": 64,
                    "repeats": 1,
                    "flip": True,
                    **(data or {}),
                },
            },
            "train": {
                "class_type": "LikenessTrainLoRA",
                "inputs": {
                    "model": ["model", 0],
                    "clip": ["model", 1],
                    "vae": ["model", 2],
                    "dataset": ["data", 0],
                    "steps": 4,
                    "learning_rate": 1e-3,
                    "rank": 4,
                    "alpha": 4.0,
                    "batch_size": 2,
                    "seed": 7,
                    **inputs,
                },
            },
        }
        if options is not None:
            standard = {
                "targets": "attention",
                "target_pattern": "",
                "optimizer": "adamw",
                "weight_decay": 0.01,
                "schedule": "constant",
                "warmup_steps": 0,
                "gradient_accumulation": 1,
                "max_grad_norm": 1.0,
                "gradient_checkpointing": False,
                "precision": "as loaded",
                "min_snr_gamma": 0.0,
                "timestep_sampling": "uniform",
                "noise_offset": 0.0,
                "caption_dropout": 0.0,
                "checkpoint_every": 0,
                "keep_last": 2,
            }
            graph["options"] = {"class_type": "LikenessTrainingOptions", "inputs": {**standard, **options}}
            graph["train"]["inputs"]["options"] = ["options", 0]
        if samples is not None:
            drawn = {
                "prompts": "a sks\na red sks",
                "negative": "",
                "seed": 1,
                "every": 2,
                "steps": 2,
                "cfg": 3.0,
                "sampler_name": "euler",
                "scheduler": "normal",
                "width": 64,
                "height": 64,
            }
            graph["samples"] = {"class_type": "LikenessSamplePrompts", "inputs": {**drawn, **samples}}
            graph["train"]["inputs"]["samples"] = ["samples", 0]
        return graph

    return build


def with_picture(graph: Graph, model: tuple[str, int] = ("model", 0), name: str = "picture") -> Graph:
    """The graph, and a picture drawn with one of its models."""
    graph = {**graph}
    graph.setdefault("model", {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": CHECKPOINT}})
    for which, text in (("positive", "a flat picture of a sks"), ("negative", "")):
        graph[which] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["model", 1], "text": text}}
    graph["empty"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph[f"{name}-draw"] = {
        "class_type": "KSampler",
        "inputs": {
            "model": list(model),
            "positive": ["positive", 0],
            "negative": ["negative", 0],
            "latent_image": ["empty", 0],
            "seed": 3,
            "steps": 3,
            "cfg": 3.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    }
    graph[f"{name}-decode"] = {
        "class_type": "VAEDecode",
        "inputs": {"samples": [f"{name}-draw", 0], "vae": ["model", 2]},
    }
    graph[name] = {
        "class_type": "SaveImage",
        "inputs": {"images": [f"{name}-decode", 0], "filename_prefix": name},
    }
    return graph


@pytest.fixture(scope="session")
def picture_of() -> Callable[..., Graph]:
    """See :func:`with_picture`."""
    return with_picture


def pixels(client: Client, run: Run, node: str) -> np.ndarray:
    """The picture that a node saved, without its metadata."""
    (file,) = run.files(node)
    return np.asarray(Image.open(io.BytesIO(client.view(file))).convert("RGB"))


@pytest.fixture()
def draw(client: Client) -> Callable[..., np.ndarray]:
    """draw() gives the untrained model's picture; draw(anew=True) makes sure that it is not the host's cached one."""

    def now(anew: bool = False) -> np.ndarray:
        run = client.run(with_picture({}))
        cached = [node for event in run.events if event.kind == "execution_cached" for node in event.data["nodes"]]
        assert not (anew and "picture-draw" in cached), "the host did not sample again, so this would compare nothing"
        return pixels(client, run, "picture")

    return now


@pytest.fixture()
def picture(client: Client) -> Callable[[Run, str], np.ndarray]:
    """picture(run, node) gives the pixels that a node saved."""
    return lambda run, node: pixels(client, run, node)
