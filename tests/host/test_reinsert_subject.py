"""Blur Subject and Reinsert Subject on tiny-unet over HTTP, against the host's own nodes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from likeness.experiments.client import Client, RunFailed
from likeness.tinyworld.truth import true_picture

Graph = dict[str, dict[str, Any]]
SAMPLING = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 0.7}
RANGES = {
    "flat": "0-1: 1",
    "split": "0-0.34: 1, 0.34-1: 1.0001",
    "late": "0-0.34: 0, 0.34-1: 1",
    "early": "0-0.34: 1, 0.34-1: 0",
}
PROMPT = "a flat picture of a creature on a blue background"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture(scope="module")
def pictures(base: Path) -> dict[str, NDArray[np.uint8]]:
    """In the input folder: a scene, and masks of its left and right part and of nothing."""
    scene = (true_picture("panda", "twemoji", (65, 120, 214)) * 255).round().astype(np.uint8)
    found = {"scene": scene}
    for name, columns in (("left", slice(6, 26)), ("right", slice(40, 58)), ("nothing", slice(0, 0))):
        mask = np.zeros((64, 64, 3), np.uint8)
        mask[10:50, columns] = 255
        found[name] = mask
    for name, picture in found.items():
        Image.fromarray(picture).save(base / "input" / f"reinsert_{name}.png")
    return found


@pytest.fixture(scope="module")
def lora(base: Path, object_info: dict[str, Any]) -> str:
    """A LoRA of one attention layer that visibly changes what is drawn."""
    name = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_v"
    chance = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=chance) for shape in ((4, 768), (320, 4)))
    path = base / "models" / "loras" / "reinsert.safetensors"
    path.parent.mkdir(exist_ok=True)
    tensors = {f"{name}.lora_down.weight": down * 0.2, f"{name}.lora_up.weight": up * 0.2}
    save_file({**tensors, f"{name}.alpha": torch.tensor(4.0)}, path)
    return path.name


def start(lora: str) -> Graph:
    graph = {
        "model": node("CheckpointLoaderSimple", ckpt_name="tiny-unet.safetensors"),
        "scene": node("LoadImage", image="reinsert_scene.png"),
        "lora": node("LikenessLoadLoRA", lora_name=lora, unknown_keys="refuse"),
        "taught": node("LoraModelLoader", model=["model", 0], lora=["lora", 0], strength_model=1.0),
    }
    for name in ("left", "right", "nothing"):
        graph[name] = node("LoadImageMask", image=f"reinsert_{name}.png", channel="red")
    return graph


def painted(graph: Graph, name: str, **given: Any) -> None:
    """Add Reinsert Subject, and a node that saves what comes out."""
    inputs = {
        **{"base": ["scene", 0], "mask": ["left", 0], "model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2]},
        **{"prompt": PROMPT, "class_noun": "creature", "token": "sks", "mode": "masked", "seed": 7, **SAMPLING},
        **given,
    }
    graph[name] = node("LikenessReinsertSubject", **inputs)
    graph[f"{name} saved"] = node("SaveImage", images=[name, 0], filename_prefix=f"reinsert_{name}")


def result(client: Client, run: Any, name: str) -> NDArray[np.uint8]:
    (file,) = run.files(f"{name} saved")
    return np.asarray(Image.open(io.BytesIO(client.view(file))).convert("RGB"))


@pytest.fixture(scope="module")
def drawn(server: Any, pictures: Any, lora: str) -> dict[str, NDArray[np.uint8]]:
    """All pictures of this file, in one run."""
    client, graph = Client(server.address), start(lora)
    painted(graph, "whole", mode="whole picture", model=["taught", 0])
    graph["encoded"] = node("VAEEncode", pixels=["scene", 0], vae=["model", 2])
    for which, text in (("positive", PROMPT.replace("creature", "sks")), ("negative", "")):
        graph[which] = node("CLIPTextEncode", clip=["model", 1], text=text)
    graph["host"] = node(
        "KSampler",
        model=["taught", 0],
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["encoded", 0],
        seed=7,
        **SAMPLING,
    )
    graph["decoded"] = node("VAEDecode", samples=["host", 0], vae=["model", 2])
    graph["host saved"] = node("SaveImage", images=["decoded", 0], filename_prefix="reinsert_host")
    painted(graph, "socket", mode="whole picture", lora=["lora", 0])
    settings = {"lora_strength": 1.0, "mask_grow": 0, "mask_feather": 0, "differential": True}
    settings |= {"crop_context": 1.6, "crop_size": 64}
    for name, ranges in RANGES.items():
        graph[f"{name} options"] = node("LikenessReinsertOptions", strength_ranges=ranges, **settings)
        painted(graph, name, mode="whole picture", lora=["lora", 0], options=[f"{name} options", 0])
    painted(graph, "plain", mode="whole picture")
    painted(graph, "masked", lora=["lora", 0])
    painted(graph, "second", base=["masked", 0], mask=["right", 0], seed=8)
    painted(graph, "crop", mode="crop and stitch", lora=["lora", 0], options=["flat options", 0])
    painted(graph, "empty", mask=["nothing", 0])
    graph["blur"] = node(
        "LikenessBlurSubject",
        images=["scene", 0],
        mask=["left", 0],
        mode="exponential decay",
        kernel=151,
        sigma=100.0,
        decay=5.0,
        distance_scale="kernel radius",
        scale_with_picture=True,
        mask_grow=0,
        mask_feather=0,
    )
    graph["blur saved"] = node("SaveImage", images=["blur", 0], filename_prefix="reinsert_blur")
    painted(graph, "pipeline", mask=["blur", 1], blurred=["blur", 0], lora=["lora", 0])
    run = client.run(graph, timeout=600)
    return {
        name.removesuffix(" saved"): result(client, run, name.removesuffix(" saved"))
        for name in graph
        if "saved" in name
    }


def apart(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Mean difference in steps of 8 bits."""
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def same(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    """But for floats that are rounded otherwise where memory lies otherwise: a step in few of the pixels."""
    return int(np.abs(one.astype(int) - other.astype(int)).max()) <= 1 and apart(one, other) < 1e-3


def test_the_whole_picture_is_the_hosts_own_img2img(drawn: dict[str, NDArray[np.uint8]]) -> None:
    """Oracle: VAE Encode, KSampler, VAE Decode of the host with the token in the prompt. Fails on another noise, prompt
    or step; and a LoRA that is connected must act as one that is loaded before."""
    assert same(drawn["whole"], drawn["host"]) and same(drawn["socket"], drawn["host"])
    assert apart(drawn["plain"], drawn["host"]) > 1, "the LoRA changes nothing: nothing was tested"


def test_strengths_by_range(drawn: dict[str, NDArray[np.uint8]]) -> None:
    """Strength 1 throughout, or in two ranges that hardly differ, is the plain LoRA. With it in the first of 3 steps
    alone, or in all but the first, pictures are between the model's and the LoRA's, and not each other's. Fails if a
    keyframe begins at the wrong step, or the hooks do not reach."""
    far = apart(drawn["plain"], drawn["host"])
    assert same(drawn["flat"], drawn["host"]) and apart(drawn["split"], drawn["host"]) < 0.02 * far
    for name in ("early", "late"):
        assert min(apart(drawn[name], drawn[end]) for end in ("plain", "host")) > 0.02 * far
    assert apart(drawn["early"], drawn["late"]) > 0.1 * far


@pytest.mark.parametrize("name", ["masked", "crop", "second", "pipeline"])
def test_outside_of_the_mask_nothing_changes(
    drawn: dict[str, NDArray[np.uint8]], pictures: dict[str, NDArray[np.uint8]], name: str
) -> None:
    """Bit for bit. Fails if the decoded picture is taken whole (the VAE changes every pixel)."""
    before = drawn["masked"] if name == "second" else pictures["scene"]
    mask = pictures["right" if name == "second" else "left"][..., 0] > 0
    inside = mask.copy()
    if name == "pipeline":  # the blur's weights reach some pixels further
        rows, columns = np.nonzero(mask)
        mask[max(0, rows.min() - 12) : rows.max() + 13, max(0, columns.min() - 12) : columns.max() + 13] = True
    assert np.array_equal(drawn[name][~mask], before[~mask])
    assert (drawn[name][inside] != before[inside]).mean() > 0.5


def test_a_second_subject_leaves_the_first_as_it_is(
    drawn: dict[str, NDArray[np.uint8]], pictures: dict[str, NDArray[np.uint8]]
) -> None:
    """Fails if chained nodes paint over each other."""
    first = pictures["left"][..., 0] > 0
    assert np.array_equal(drawn["second"][first], drawn["masked"][first])


def test_an_empty_mask_leaves_the_picture(
    drawn: dict[str, NDArray[np.uint8]], pictures: dict[str, NDArray[np.uint8]]
) -> None:
    """Fails if nothing found becomes everything painted."""
    assert np.array_equal(drawn["empty"], pictures["scene"])


def test_the_blur_hides_the_object_and_keeps_the_rest(
    drawn: dict[str, NDArray[np.uint8]], pictures: dict[str, NDArray[np.uint8]]
) -> None:
    """Fails if the weights are inverted, or a constant ground changes."""
    inside = pictures["left"][..., 0] > 0
    assert drawn["blur"][inside].std() < 0.7 * pictures["scene"][inside].std()
    assert np.array_equal(drawn["blur"][:, 45:], pictures["scene"][:, 45:])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"prompt": "a house"}, "neither the class noun 'creature' nor the token"),
        ({"options": ["bad options", 0], "lora": ["lora", 0]}, "is no range of the sampling"),
    ],
)
def test_bad_input_is_told(client: Client, pictures: Any, lora: str, given: dict[str, Any], said: str) -> None:
    """Fails if a prompt without the subject is painted all the same, or a range is dropped in silence."""
    graph = start(lora)
    graph["bad options"] = node(
        "LikenessReinsertOptions",
        lora_strength=1.0,
        strength_ranges="half: 1",
        mask_grow=0,
        mask_feather=0,
        differential=True,
        crop_context=1.6,
        crop_size=0,
    )
    painted(graph, "bad", **given)
    with pytest.raises(RunFailed, match=said):
        client.run(graph, timeout=120)
