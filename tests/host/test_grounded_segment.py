"""Grounded segmentation on a running server: tiny random models, boxes and masks of others, frames without a find."""

from __future__ import annotations

import importlib.util
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.experiments.client import RunFailed
from likeness.segmentation import grounding_dino, sam
from likeness.segmentation.grounded import FindOptions, find_objects

TINY = Path(__file__).resolve().parents[1] / "segmentation" / "tiny_models.py"
SETTINGS = {
    "phrases": "a cat, dog",
    "box_threshold": 0.0,
    "text_threshold": 0.25,
    "max_objects": 3,
    "choice": "box fit (Eq. 3)",
    "area_penalty": 0.1,
    "overlap": 0.8,
}


@pytest.fixture(scope="module")
def folders(server: Any) -> dict[str, Path]:
    """Tiny random models in the server's models folder, and a single file of the original code."""
    spec = importlib.util.spec_from_file_location("tiny_models_of_host_tests", TINY)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    models = server.base / "models"
    (models / "sams").mkdir(exist_ok=True)
    (models / "sams" / "sam_vit_b.pth").write_bytes(b"pickle")
    return {
        "dino": made.grounding_dino(models / "grounding-dino" / "tiny"),
        "sam": made.sam(models / "sams" / "tiny"),
        "sam2": made.sam2(models / "sam2" / "owner" / "tiny"),
    }


@pytest.fixture(scope="module")
def pictures(server: Any) -> list[torch.Tensor]:
    """Two pictures of 64 × 48 in the input folder, the second with alpha; and a mask of two pieces."""
    generator = torch.Generator().manual_seed(0)
    arrays = [torch.randint(0, 256, (48, 64, 3), generator=generator, dtype=torch.uint8).numpy() for _ in range(2)]
    folder = server.base / "input"
    Image.fromarray(arrays[0]).save(folder / "seg0.png")
    Image.fromarray(np.dstack([arrays[1], np.full((48, 64, 1), 255, np.uint8)])).save(folder / "seg1.png")
    pieces = np.zeros((48, 64), np.uint8)
    pieces[5:20, 5:25] = 255
    pieces[30:45, 40:60] = 255
    Image.fromarray(pieces).convert("RGB").save(folder / "segmask.png")
    return [torch.from_numpy(array).permute(2, 0, 1).float() / 255 for array in arrays]


def graph(**more: Any) -> dict[str, Any]:
    """Two pictures -> Grounded Segment, its masks and texts shown."""
    return {
        "p0": {"class_type": "LoadImage", "inputs": {"image": "seg0.png"}},
        "p1": {"class_type": "LoadImage", "inputs": {"image": "seg1.png"}},
        "both": {"class_type": "ImageBatch", "inputs": {"image1": ["p0", 0], "image2": ["p1", 0]}},
        "seg": {"class_type": "LikenessGroundedSegment", "inputs": {"images": ["both", 0], **SETTINGS, **more}},
        "m": {"class_type": "MaskToImage", "inputs": {"mask": ["seg", 0]}},
        "mask": {"class_type": "PreviewImage", "inputs": {"images": ["m", 0]}},
        "o": {"class_type": "MaskToImage", "inputs": {"mask": ["seg", 1]}},
        "objects": {"class_type": "PreviewImage", "inputs": {"images": ["o", 0]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["seg", 3]}},
        "json": {"class_type": "PreviewAny", "inputs": {"source": ["seg", 4]}},
    }


def shown(client: Any, run: Any, node: str) -> np.ndarray:
    """(n, H, W) of what a preview shows, in [0, 1]."""
    files = [client.view(file) for file in run.files(node)]
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("L")) for file in files]) / 255


def loaders(segmenter: str) -> dict[str, Any]:
    return {
        "dino": {
            "class_type": "LikenessLoadGrounding",
            "inputs": {"detector": "grounding-dino/tiny", "precision": "auto"},
        },
        "sam": {"class_type": "LikenessLoadSegmenter", "inputs": {"segmenter": segmenter, "precision": "auto"}},
    }


@pytest.mark.parametrize(("segmenter", "kind"), [("sams/tiny", "sam"), ("sam2/owner/tiny", "sam2")])
def test_phrases_to_masks(
    segmenter: str, kind: str, client: Any, folders: dict[str, Path], pictures: list[torch.Tensor]
) -> None:
    """What the server's masks and boxes are, the room gives in this process for each picture alone. Fails if frames
    or objects are mixed up, or the host's device management hands over another network."""
    whole = graph(grounding=["dino", 0], segmenter=["sam", 0]) | loaders(segmenter)
    run = client.run(whole)
    networks = grounding_dino.load_grounding_dino(folders["dino"]), sam.load_sam(folders[kind])
    detector = grounding_dino.GroundingDino(
        lambda: networks[0], grounding_dino.grounding_dino_processor(folders["dino"])
    )
    masker = sam.Sam(lambda: networks[1], sam.sam_processor(folders[kind]))
    options = FindOptions(0.0, 0.25, most=3)
    expected = [find_objects(picture, ("a cat", "dog"), detector, masker, options) for picture in pictures]
    frames = json.loads(run.text("json"))["frames"]
    for frame, objects in zip(frames, expected, strict=True):
        boxes = torch.tensor([one["box"] for one in frame["objects"]])
        torch.testing.assert_close(boxes, objects.boxes, atol=0.01, rtol=1e-3)
    assert [one["mask"] for frame in frames for one in frame["objects"]] == [0, 1, 2, 3, 4, 5]
    unions = shown(client, run, "mask")
    assert unions.shape == (2, 48, 64)
    assert np.mean(unions != torch.stack([objects.union for objects in expected]).numpy()) < 2e-3
    masks = shown(client, run, "objects")
    assert np.mean(masks != torch.cat([objects.masks for objects in expected]).numpy()) < 2e-3
    assert "Grounding DINO, tiny, fp32" in run.text("report")
    assert len(run.files("seg")) == 2  # the overlay is shown on the node
    client.free()  # the networks leave the device and the results the cache
    assert client.run(whole).text("json") == run.text("json")


def test_boxes_of_others_and_a_frame_without_a_find(client: Any, folders: Any, pictures: Any) -> None:
    """The second frame keeps its place with an empty mask and is named; boxes go on to another such node as the
    host's type. Fails if the batch gets shorter, which is the peers' fault."""
    boxes = {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "[[[4, 4, 40, 40, 0.5]], []]"}}
    again = graph(bounding_boxes=["seg", 2], segmenter=["sam", 0])["seg"]
    whole = graph(boxes=["boxes", 0], segmenter=["sam", 0]) | loaders("sams/tiny") | {"boxes": boxes, "again": again}
    del whole["dino"]
    whole["second"] = {"class_type": "PreviewAny", "inputs": {"source": ["again", 4]}}
    run = client.run(whole)
    unions = shown(client, run, "mask")
    assert unions.shape == (2, 48, 64) and unions[0].any() and not unions[1].any()
    assert shown(client, run, "objects").shape == (1, 48, 64)
    assert "nothing in frame 1" in run.text("report")
    frames = json.loads(run.text("json"))["frames"]
    assert [len(frame["objects"]) for frame in frames] == [1, 0] and frames[0]["objects"][0]["label"] == "a cat"
    candidates = frames[0]["objects"][0]["candidates"]
    assert len(candidates) == 3
    best = max(candidates, key=lambda one: one["iou"] - 0.1 * one["area"])
    assert best["chosen"] and sum(one["chosen"] for one in candidates) == 1
    second = json.loads(run.text("second"))["frames"]
    assert second[0]["objects"][0]["box"] == [4, 4, 40, 40] and second[1]["objects"] == []


def test_masks_of_others(client: Any, pictures: Any) -> None:
    """Pieces of a mask of any node become objects, without any model; for both frames of the batch."""
    whole = graph(mask=["given", 0])
    whole["given"] = {"class_type": "LoadImageMask", "inputs": {"image": "segmask.png", "channel": "red"}}
    run = client.run(whole)
    frames = json.loads(run.text("json"))["frames"]
    assert [[one["box"] for one in frame["objects"]] for frame in frames] == [[[5, 5, 25, 20], [40, 30, 60, 45]]] * 2
    unions = shown(client, run, "mask")
    assert unions.shape == (2, 48, 64) and unions[0].sum() == unions[1].sum() == 600
    assert shown(client, run, "objects").sum((1, 2)).tolist() == [300] * 4


def test_what_cannot_be_loaded_is_told(client: Any, folders: Any, pictures: Any) -> None:
    """A .pth, a hub id without leave to download, and a bad id are refused with what to do; nothing is fetched."""
    for node, name, inputs, says in (
        ("LikenessLoadSegmenter", "segmenter", {"segmenter": "sams/sam_vit_b.pth"}, "single file of the original code"),
        ("LikenessLoadGrounding", "detector", {"hub_id": "IDEA-Research/grounding-dino-tiny"}, "downloads are off"),
        ("LikenessLoadSegmenter", "segmenter", {"hub_id": "../up"}, "is no id of a model"),
    ):
        socket = "segmenter" if name == "segmenter" else "grounding"
        whole = graph(**{socket: ["load", 0]})
        standard = {name: "subject finder (built in)", "precision": "auto"}
        whole["load"] = {"class_type": node, "inputs": standard | inputs}
        with pytest.raises(RunFailed, match=says):
            client.run(whole)


def test_without_any_download(client: Any, pictures: Any) -> None:
    """Neither loader nor model: the built-in subject finder works on a batch."""
    run = client.run(graph())
    assert shown(client, run, "mask").shape == (2, 48, 64)
    assert "built-in subject finder" in run.text("report")
