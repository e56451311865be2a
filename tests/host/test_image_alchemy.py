"""Image-Alchemy's workflows as saved but for the number of steps; and batches, odd sizes, alpha through their nodes."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from likeness.experiments.client import Client, RunFailed
from likeness.experiments.workflow import set_inputs, to_api
from likeness.tinyworld.truth import true_picture, write_references

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
Graph = dict[str, dict[str, Any]]
Picture = NDArray[np.uint8]
WIDTH, HEIGHT = 45, 61


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def opened(client: Client, run: Any, name: str) -> list[Picture]:
    """All pictures that a node saved, in order."""
    return [np.asarray(Image.open(io.BytesIO(client.view(file)))) for file in run.files(name)]


def shortened(name: str, object_info: dict[str, Any]) -> Graph:
    graph = to_api(json.loads((FOLDER / f"{name}.json").read_text("utf-8")), object_info)
    set_inputs(graph, "LikenessTrainLoRA", steps=1, batch_size=1, rank=2)
    set_inputs(graph, "KSampler", steps=8)
    set_inputs(graph, "LikenessReinsertSubject", steps=2)
    return graph


def of_class(graph: Graph, kind: str) -> list[str]:
    return [name for name, body in graph.items() if body["class_type"] == kind]


def test_from_pictures_to_the_result_in_one_graph(client: Client, base: Path, object_info: dict[str, Any]) -> None:
    """The scene and the result are the same wherever the weights are 0, and differ where something was found. Fails if
    a wire leads to the wrong picture or mask, or the token never reaches the prompt."""
    write_references("panda", base / "input" / "likeness_quickstart")
    graph = shortened("image_alchemy", object_info)
    (blur,), (reinsert,) = of_class(graph, "LikenessBlurSubject"), of_class(graph, "LikenessReinsertSubject")
    scene = graph[reinsert]["inputs"]["base"]
    assert graph[blur]["inputs"]["images"] == scene, "the blurred picture is another than the base"
    graph["reached"] = node("ThresholdMask", mask=[blur, 1], value=0.001)  # below 1/512 a weight is 0
    graph["weights"] = node("MaskToImage", mask=["reached", 0])
    for name, source in {"scene": scene, "weights": ["weights", 0], "result": [reinsert, 0]}.items():
        graph[f"{name} saved"] = node("SaveImage", images=source, filename_prefix=f"alchemy_{name}")
    run = client.run(graph, timeout=600)
    before, weights, after = (opened(client, run, f"{name} saved") for name in ("scene", "weights", "result"))
    assert len(before) == len(after) == graph[of_class(graph, "EmptyLatentImage")[0]]["inputs"]["batch_size"]
    for one, weight, other in zip(before, weights, after, strict=True):
        outside = weight[..., 0] == 0
        assert np.array_equal(one[outside], other[outside])
    assert any(
        (weight > 0).any() and not np.array_equal(a, b) for a, weight, b in zip(before, weights, after, strict=True)
    )
    texts = [run.text(name) for name in of_class(graph, "PreviewAny")]
    assert any("a sks on a blue background" in text for text in texts), texts
    assert (base / "models" / "loras" / "likeness" / "image_alchemy.safetensors").is_file()


def test_two_subjects_one_after_the_other(client: Client, base: Path, object_info: dict[str, Any]) -> None:
    """The first paints in the left half alone, the second in the right alone. Fails if the second node begins from the
    scene instead of from the first's result, or a mask reaches over."""
    for name in ("duck", "peach"):
        write_references(name, base / "input" / f"likeness_{name}")
    graph = shortened("image_alchemy_two_subjects", object_info)
    first, second = of_class(graph, "LikenessReinsertSubject")
    if graph[first]["inputs"]["base"][0] == second:
        first, second = second, first
    assert graph[second]["inputs"]["base"] == [first, 0]
    assert graph[first]["inputs"]["lora"] != graph[second]["inputs"]["lora"]
    for name, source in {"scene": graph[first]["inputs"]["base"], "one": [first, 0], "two": [second, 0]}.items():
        graph[f"{name} saved"] = node("SaveImage", images=source, filename_prefix=f"alchemy_two_{name}")
    run = client.run(graph, timeout=600)
    for scene, one, two in zip(
        *(opened(client, run, f"{name} saved") for name in ("scene", "one", "two")), strict=True
    ):
        half, reach = scene.shape[1] // 2, scene.shape[1] // 8  # the blur's weights reach a few pixels over
        assert np.array_equal(scene[:, half + reach :], one[:, half + reach :])
        assert np.array_equal(one[:, : half - reach], two[:, : half - reach])
        assert not np.array_equal(scene, one) and not np.array_equal(one, two)


@pytest.fixture(scope="module")
def odd(base: Path) -> dict[str, Picture]:
    """In the input folder: two scenes of 45 × 61, and masks of a middle part, of one pixel and of nothing."""
    found = {}
    for name, emoji in (("first", "panda"), ("second", "peach")):
        whole = (true_picture(emoji, "twemoji", (65, 120, 214)) * 255).round().astype(np.uint8)
        found[name] = whole[:HEIGHT, :WIDTH]
    places = {
        "middle": (slice(20, 40), slice(12, 30)),
        "pixel": (slice(30, 31), slice(44, 45)),
        "none": (slice(0),) * 2,
    }
    for name, where in places.items():
        found[name] = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        found[name][where] = 255
    for name, picture in found.items():
        Image.fromarray(picture).save(base / "input" / f"alchemy_{name}.png")
    return found


def started() -> Graph:
    graph = {"model": node("CheckpointLoaderSimple", ckpt_name="tiny-unet.safetensors")}
    graph |= {name: node("LoadImage", image=f"alchemy_{name}.png") for name in ("first", "second")}
    for name in ("middle", "pixel", "none"):
        graph[name] = node("LoadImage", image=f"alchemy_{name}.png")
        graph[f"{name} mask"] = node("ImageToMask", image=[name, 0], channel="red")
    return graph


def painted(graph: Graph, name: str, base: str, mask: str, seed: int, **more: Any) -> None:
    ends = {"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2]}
    asked = {"prompt": "a creature", "class_noun": "creature", "token": "sks", "mode": "masked", "denoise": 0.9}
    how = {"seed": seed, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "normal"}
    graph[name] = node("LikenessReinsertSubject", base=[base, 0], mask=[mask, 0], **ends, **{**asked, **how, **more})
    graph[f"{name} saved"] = node("SaveImage", images=[name, 0], filename_prefix=f"alchemy_{name.replace(' ', '_')}")


def test_batches_odd_sizes_alpha_and_one_pixel(client: Client, odd: dict[str, Picture]) -> None:
    """A batch is its pictures one by one, with the next seed each, and an empty mask among others leaves its picture.
    Fails if frames are mixed up or lost, a size that is no multiple of 8 is cut, alpha is dropped, or a mask of one
    pixel at the border breaks the piece."""
    graph = started()
    for name, one, other in (
        ("pictures", "first", "second"),
        ("masks", "middle", "none"),
        ("other masks", "none", "pixel"),
    ):
        graph[name] = node("ImageBatch", image1=[one, 0], image2=[other, 0])
    for name in ("masks", "other masks"):
        graph[f"{name} mask"] = node("ImageToMask", image=[name, 0], channel="red")
    graph["see-through"] = node("JoinImageWithAlpha", image=["first", 0], alpha=["middle mask", 0])
    for mode in ("masked", "crop and stitch"):
        painted(graph, f"{mode} batch", "pictures", "masks mask", 7, mode=mode)
        painted(graph, f"{mode} late", "pictures", "other masks mask", 6, mode=mode)
        painted(graph, f"{mode} first", "first", "middle mask", 7, mode=mode)
        painted(graph, f"{mode} second", "second", "pixel mask", 7, mode=mode)
    painted(graph, "whole", "pictures", "middle mask", 7, mode="whole picture")
    painted(graph, "alpha", "see-through", "middle mask", 7)
    run = client.run(graph, timeout=600)
    for mode in ("masked", "crop and stitch"):
        (first,), (second,) = (opened(client, run, f"{mode} {name} saved") for name in ("first", "second"))
        batch, late = (opened(client, run, f"{mode} {name} saved") for name in ("batch", "late"))
        for found, expected in zip([*batch, *late], [first, odd["second"], odd["first"], second], strict=True):
            assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        assert np.array_equal(batch[1], odd["second"]) and np.array_equal(late[0], odd["first"])
        for picture, scene, mask in ((first, "first", "middle"), (second, "second", "pixel")):
            assert np.array_equal((picture != odd[scene]).any(-1) & (odd[mask][..., 0] == 0), np.zeros((HEIGHT, WIDTH)))
        assert not np.array_equal(first, odd["first"])
    assert [picture.shape for picture in opened(client, run, "whole saved")] == [(HEIGHT, WIDTH, 3)] * 2
    (alpha,) = opened(client, run, "alpha saved")
    assert alpha.shape[2] == 4 and len(np.unique(alpha[..., 3])) == 2
    (masked,) = opened(client, run, "masked first saved")
    assert np.abs(alpha[..., :3].astype(int) - masked.astype(int)).max() <= 1


def test_counts_and_sizes_that_do_not_fit_are_told(client: Client, odd: dict[str, Picture]) -> None:
    """Fails if a batch of masks is cut in silence, or a blurred picture of another size is stretched."""
    graph = started()
    graph["two"] = node("ImageBatch", image1=["middle", 0], image2=["none", 0])
    graph["two mask"] = node("ImageToMask", image=["two", 0], channel="red")
    painted(graph, "too many", "first", "two mask", 0)
    with pytest.raises(RunFailed, match="2 masks for 1 pictures"):
        client.run(graph, timeout=120)
    graph = started()
    graph["small"] = node("ImageScaleBy", image=["first", 0], upscale_method="area", scale_by=0.5)
    painted(graph, "too small", "first", "middle mask", 0, blurred=["small", 0])
    with pytest.raises(RunFailed, match="both must be of one size"):
        client.run(graph, timeout=120)
