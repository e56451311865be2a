"""Image-Alchemy's pipeline as a graph: base scene, find, blur, paint; with the nodes that users have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..truth import TRIGGER
from .graphs import Graph, node, start
from .protocol import PICTURES, SCENES

BLURS = ("gaussian", "exponential decay")
DENOISE = 0.9  # not tuned
WHOLE = "whole picture"


def pipeline(info: Mapping[str, Any]) -> Graph:
    """For each scene: "text NAME", "find NAME", "blur NAME", "paint NAME", and "draw NAME", which shows the picture."""
    graph = start(info)
    graph["load"] = node(info, "LikenessLoadLoRA", lora_name="")
    graph["latent"] = node(info, "EmptyLatentImage", width=64, height=64, batch_size=PICTURES)
    sampling = {"steps": 20, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
    for k, asked in enumerate(SCENES):
        name = asked.name
        graph[f"text {name}"] = node(info, "CLIPTextEncode", clip=["model", 1], text="")
        graph[f"scene {name}"] = node(
            info,
            "KSampler",
            model=["model", 0],
            positive=[f"text {name}", 0],
            negative=["empty", 0],
            latent_image=["latent", 0],
            seed=56 + k,  # as in `protocol.draw_all`
            denoise=1.0,
            **sampling,
        )
        graph[f"base {name}"] = node(info, "VAEDecode", samples=[f"scene {name}", 0], vae=["model", 2])
        graph[f"find {name}"] = node(info, "LikenessGroundedSegment", images=[f"base {name}", 0], phrases="")
        graph[f"blur {name}"] = node(info, "LikenessBlurSubject", images=[f"base {name}", 0], mask=[f"find {name}", 0])
        graph[f"paint {name}"] = node(
            info,
            "LikenessReinsertSubject",
            **{"base": [f"base {name}", 0], "blurred": [f"blur {name}", 0], "mask": [f"blur {name}", 1]},
            **{"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2], "lora": ["load", 0]},
            **{"prompt": "", "class_noun": "", "token": TRIGGER, "denoise": DENOISE, "seed": 56 + k},
            **sampling,
        )
        graph[f"draw {name}"] = node(info, "PreviewImage", images=[f"paint {name}", 0])
        graph[f"shown {name}"] = node(info, "PreviewImage", images=[f"base {name}", 0])
    return graph


def of_noun(noun: str) -> dict[str, Any]:
    """Settings of the graph for a subject of that class."""
    settings: dict[str, Any] = {}
    for asked in SCENES:
        prompt = asked.prompt(noun)
        settings |= {f"text {asked.name}.text": prompt, f"find {asked.name}.phrases": noun}
        settings |= {f"paint {asked.name}.prompt": prompt, f"paint {asked.name}.class_noun": noun}
    return settings


def ways(modes: Sequence[str]) -> list[dict[str, Any]]:
    """Each way to put the subject in, with each blur."""
    return [
        {
            "label": f"Image-Alchemy, {mode}, {blur}",
            "set": {
                f"{step} {asked.name}.mode": value
                for asked in SCENES
                for step, value in (("paint", mode), ("blur", blur))
            },
        }
        for mode in modes
        for blur in BLURS
    ]
