"""What the quality tests share: pictures asked of a real ComfyUI, and a judge trained on real pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

Graph = dict[str, dict[str, Any]]
Link = list[Any]  # [node id, output]


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def base_graph(checkpoint: str = "tiny-unet.safetensors") -> Graph:
    """A small model, loaded as anybody loads a checkpoint."""
    return {
        "model": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "empty": _node("CLIPTextEncode", clip=["model", 1], text=""),
    }


def ask(graph: Graph, name: str, model: Link, prompt: str, seed: int, pictures: int = 1) -> None:
    """Add KSampler (20 steps, euler, normal, cfg 3) for a prompt; the pictures come from node `name`."""
    graph[f"{name} text"] = _node("CLIPTextEncode", clip=["model", 1], text=prompt)
    graph[f"{name} latent"] = _node("EmptyLatentImage", width=64, height=64, batch_size=pictures)
    graph[f"{name} sampler"] = _node(
        "KSampler",
        model=model,
        seed=seed,
        steps=20,
        cfg=3.0,
        sampler_name="euler",
        scheduler="normal",
        positive=[f"{name} text", 0],
        negative=["empty", 0],
        latent_image=[f"{name} latent", 0],
        denoise=1.0,
    )
    graph[f"{name} decode"] = _node("VAEDecode", samples=[f"{name} sampler", 0], vae=["model", 2])
    graph[name] = _node("PreviewImage", images=[f"{name} decode", 0])


def pictures_of(client: Any, run: Any, name: str) -> Tensor:
    """The pictures of a node of `ask`: (B, 3, 64, 64) in [0, 1]."""
    files = [Image.open(io.BytesIO(client.view(file))).convert("RGB") for file in run.files(name)]
    return torch.stack([torch.from_numpy(np.array(file)) for file in files]).permute(0, 3, 1, 2) / 255


def training_options(client: Any, **given: Any) -> dict[str, Any]:
    """The node with all its inputs, which are not its defaults where given."""
    required = client.object_info("LikenessTrainingOptions")["LikenessTrainingOptions"]["input"]["required"]
    return _node(
        "LikenessTrainingOptions", **({name: about["default"] for name, (_, about) in required.items()} | given)
    )


@dataclass(frozen=True)
class Studio:
    """The graph's parts, for tests that ask for pictures."""

    base_graph: Callable[..., Graph] = base_graph
    ask: Callable[..., None] = ask
    pictures_of: Callable[..., Tensor] = pictures_of
    node: Callable[..., dict[str, Any]] = _node
    training_options: Callable[..., dict[str, Any]] = training_options


@pytest.fixture(scope="session")
def studio() -> Studio:
    return Studio()


@pytest.fixture(scope="module", params=["tiny-unet", "tiny-mmdit"])
def checkpoint(request: pytest.FixtureRequest, base: Path) -> str:
    """Each small model's file in the server's folder: noise prediction first, then flow."""
    name: str = request.param
    return f"{name}.safetensors" if name == "tiny-unet" else request.getfixturevalue("tiny_mmdit")


@pytest.fixture(scope="session")
def real_pictures(pytestconfig: pytest.Config) -> dict[tuple[str, str], Any]:
    """Real pictures of the 50 asked subjects in the six pretraining styles, drawn from the artwork (npm, once)."""
    from likeness.tinyworld.classifier import asked_subjects
    from likeness.tinyworld.pictures import download_packs, draw, load_packs
    from likeness.tinyworld.split import load_split

    split = load_split()
    folder = Path(pytestconfig.rootpath) / ".tinyworld" / "packs"
    try:
        download_packs(folder)
    except (RuntimeError, OSError) as error:
        pytest.skip(f"NOT TESTED: the judge needs the real artwork: {error}")
    packs = load_packs(folder)
    return {
        (name, style): draw(packs[style], name) for name in asked_subjects(split) for style in split.pretrain_styles
    }


@pytest.fixture(scope="session")
def judge() -> Any:
    """Names the subject (of 50) and the style (of 6) of a picture; the build trained it on real pictures alone."""
    from likeness.tinyworld.classifier import load_judge
    from likeness.tinyworld.split import load_split

    return load_judge(load_split())
