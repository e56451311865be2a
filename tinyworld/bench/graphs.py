"""Parts of graphs on tiny-unet, in the API format, and what their pictures are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...metrics.features import Features, efficientnet_lite0
from ..classifier import PictureClassifier, load_judge
from ..split import load_split
from ..truth import true_picture

Graph = dict[str, Any]


def node(info: Mapping[str, Any], kind: str, **inputs: Any) -> dict[str, Any]:
    """A node with the schema's defaults for the widgets that are not given."""
    schema = info[kind]["input"]
    for name, spec in {**(schema.get("required") or {}), **(schema.get("optional") or {})}.items():
        options = spec[1] if len(spec) > 1 else {}
        choices = spec[0] if isinstance(spec[0], list) else options.get("options") or []
        if name not in inputs and ("default" in options or choices):
            inputs[name] = options.get("default", choices[0] if choices else None)
    return {"class_type": kind, "inputs": inputs}


def start(info: Mapping[str, Any]) -> Graph:
    return {
        "model": node(info, "CheckpointLoaderSimple", ckpt_name="tiny-unet.safetensors"),
        "empty": node(info, "CLIPTextEncode", clip=["model", 1], text=""),
    }


def draw(
    info: Mapping[str, Any],
    graph: Graph,
    model: list[Any],
    prompt: str,
    seed: int,
    name: str = "",
    latent: str = "latent",
) -> None:
    """Pictures of a prompt on the node `latent`, shown by the node "draw" with `name` after it."""
    graph[f"text{name}"] = node(info, "CLIPTextEncode", clip=["model", 1], text=prompt)
    graph[f"sample{name}"] = node(
        info,
        "KSampler",
        model=model,
        seed=seed,
        steps=20,
        cfg=3.0,
        sampler_name="euler",
        scheduler="normal",
        positive=[f"text{name}", 0],
        negative=["empty", 0],
        latent_image=[latent, 0],
        denoise=1.0,
    )
    graph[f"decode{name}"] = node(info, "VAEDecode", samples=[f"sample{name}", 0], vae=["model", 2])
    graph[f"draw{name}"] = node(info, "PreviewImage", images=[f"decode{name}", 0])


def true_tensor(subject: str, style: str) -> Tensor:
    """(3, 64, 64) in [0, 1]."""
    return torch.from_numpy(true_picture(subject, style)).permute(2, 0, 1)


@cache
def features() -> Features:
    return efficientnet_lite0()


@cache
def judge() -> PictureClassifier:
    return load_judge(load_split())
