"""The real loading code on tiny random Grounding DINO, SAM and SAM 2, against the library's own way to use them.

test_older_transformers.py runs this file once more with transformers 4.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.segmentation import grounding_dino as dino
from likeness.segmentation import sam
from likeness.segmentation.grounded import FindOptions, find_objects
from likeness.segmentation.model_folder import DTYPES

PHRASES = ("a cat", "dog")
BOXES = torch.tensor([[5.0, 5, 30, 40], [0, 0, 71, 50], [33.5, 10.25, 60, 45], *[[i, 2, 30 + i, 41] for i in range(8)]])


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """(3, 50, 71), whole levels of 8 bits, so that PIL has the same numbers."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, 50, 71), generator=generator).float() / 255


@pytest.fixture(scope="module")
def pil(picture: torch.Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def detector(folder: Path, dtype: str = "fp32") -> dino.GroundingDino:
    network = dino.load_grounding_dino(folder, dtype)
    return dino.GroundingDino(lambda: network, dino.grounding_dino_processor(folder))


def segmenter(folder: Path, dtype: str = "fp32") -> sam.Sam:
    network = sam.load_sam(folder, dtype)
    return sam.Sam(lambda: network, sam.sam_processor(folder))


def test_boxes_are_the_librarys(tiny_folders: dict[str, Path], picture: torch.Tensor, pil: Image.Image) -> None:
    """Boxes, scores and labels equal the library's; would fail with (W, H) for (H, W), or thresholds swapped."""
    import transformers

    folder = tiny_folders["grounding-dino"]
    processor = transformers.AutoProcessor.from_pretrained(folder)
    network = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    inputs = processor(images=pil, text=[list(PHRASES)], return_tensors="pt")
    with torch.no_grad():
        outputs = network(**inputs)
    scores = outputs.logits.sigmoid().amax(-1)[0].sort(descending=True).values
    low, words = float(scores[8:10].mean()), float(outputs.logits.sigmoid()[0].quantile(0.7))
    expected = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], threshold=low, text_threshold=words, target_sizes=[(50, 71)]
    )[0]
    found = detector(folder).detect(picture[None], PHRASES, low, words)[0]
    order = expected["scores"].argsort(descending=True, stable=True)
    assert len(found) == 9
    torch.testing.assert_close(found.scores, expected["scores"][order])
    limit = torch.tensor([71.0, 50, 71, 50])
    torch.testing.assert_close(found.boxes, expected["boxes"][order].clamp(min=torch.zeros(4), max=limit))
    assert found.labels == tuple(expected["text_labels"][row] for row in order)


def test_each_picture_of_a_batch_keeps_its_place(tiny_folders: dict[str, Path], picture: torch.Tensor) -> None:
    """A batch equals its pictures one by one, in order; would fail if finds were flattened over the batch."""
    found = detector(tiny_folders["grounding-dino"])
    pictures = torch.stack([picture, picture.flip(0), torch.zeros_like(picture)])
    together = found.detect(pictures, PHRASES, 0.5, 0.25)
    for boxes, one in zip(together, pictures, strict=True):
        alone = found.detect(one[None], PHRASES, 0.5, 0.25)[0]
        torch.testing.assert_close(boxes.boxes, alone.boxes)
    assert [len(boxes) for boxes in found.detect(pictures, PHRASES, 1.0, 0.25)] == [0, 0, 0]


@pytest.mark.parametrize("kind", ["sam", "sam2"])
def test_hypotheses_are_the_librarys(
    kind: str, tiny_folders: dict[str, Path], picture: torch.Tensor, pil: Image.Image
) -> None:
    """Three masks a box and their scores equal one call of the whole model for all boxes; 11 boxes are more than are
    decoded at once. Would fail if a box's masks were scaled from the padded square, or boxes went out of step."""
    import transformers

    folder = tiny_folders[kind]
    names = sam.CLASSES[kind]
    network = getattr(transformers, names[0]).from_pretrained(folder).eval()
    processor = getattr(transformers, names[1]).from_pretrained(folder)
    inputs = processor(images=pil, input_boxes=[BOXES.tolist()], return_tensors="pt")
    with torch.no_grad():
        given = {name: inputs[name].float() for name in ("pixel_values", "input_boxes")}
        outputs = network(**given, multimask_output=True)
    sizes = [inputs["original_sizes"]] + ([inputs["reshaped_input_sizes"]] if kind == "sam" else [])
    expected = processor.post_process_masks(outputs.pred_masks, *sizes)[0]
    found = list(segmenter(folder).hypotheses(picture, BOXES))
    assert len(found) == len(BOXES) > sam.AT_ONCE
    for one, masks, own in zip(found, expected, outputs.iou_scores[0], strict=True):
        assert one.masks.shape == (3, 50, 71)
        assert np.mean(one.masks.bool().numpy() != masks.numpy()) < 1e-3  # a logit of ±1e-8 may fall to either side
        torch.testing.assert_close(one.own, own, atol=1e-5, rtol=1e-4)
    different = [(found[0].masks != other.masks).float().mean() for other in found[1:]]
    assert max(different) > 0.01, "the boxes do not matter"


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision(dtype: str, tiny_folders: dict[str, Path], picture: torch.Tensor) -> None:
    """Weights are stored in 16 bits and finds stay near fp32's; would fail where the library mixes float32 in."""
    whole = detector(tiny_folders["grounding-dino"]).detect(picture[None], PHRASES, 0.0, 0.25)[0]
    half = detector(tiny_folders["grounding-dino"], dtype)
    assert next(half._loaded().parameters()).dtype == DTYPES[dtype]
    found = half.detect(picture[None], PHRASES, 0.0, 0.25)[0]
    assert len(found) == len(whole) and found.boxes.dtype == torch.float32
    assert float((found.scores - whole.scores).abs().mean()) < 0.05  # random weights magnify what is rounded
    for kind in ("sam", "sam2"):
        one = next(segmenter(tiny_folders[kind]).hypotheses(picture, BOXES[:1]))
        other = next(segmenter(tiny_folders[kind], dtype).hypotheses(picture, BOXES[:1]))
        assert float((one.own - other.own).abs().max()) < 0.02
        assert float((one.masks != other.masks).float().mean()) < 0.25


def test_pipeline_end_to_end(tiny_folders: dict[str, Path], picture: torch.Tensor) -> None:
    """Phrases to masks with both real models; would fail if boxes and masks were of different spaces."""
    options = FindOptions(box_threshold=0.0, text_threshold=0.0, most=3, overlap=0.5)
    models = detector(tiny_folders["grounding-dino"]), segmenter(tiny_folders["sam2"])
    objects = find_objects(picture, PHRASES, *models, options)
    assert objects.masks.shape == (3, 50, 71)
    assert len(objects.candidates) == 9 and len(objects.chosen) == 3
    assert torch.equal(objects.union, objects.masks.amax(0))


def test_sam2_folders_of_the_hub_say_video(tiny_folders: dict[str, Path], tmp_path: Path, picture: Any) -> None:
    """facebook/sam2.1-*'s config.json says sam2_video; the picture's part of it is read all the same."""
    folder = shutil.copytree(tiny_folders["sam2"], tmp_path / "sam2.1")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"], config["architectures"] = "sam2_video", ["Sam2VideoModel"]
    (folder / "config.json").write_text(json.dumps(config))
    one = next(segmenter(folder).hypotheses(picture, BOXES[:1]))
    other = next(segmenter(tiny_folders["sam2"]).hypotheses(picture, BOXES[:1]))
    torch.testing.assert_close(one.own, other.own)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no model.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "expected sam or sam2"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 64), "cannot be read"),
        (lambda folder: [path.unlink() for path in folder.glob("*processor_config.json")], "no preprocessor_config"),
    ],
)
def test_what_a_folder_lacks_is_said(spoil: Any, says: str, tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Each says the folder, the file, and where such a folder is to be had."""
    folder = shutil.copytree(tiny_folders["sam"], tmp_path / "broken")
    spoil(folder)
    with pytest.raises(ValueError, match=says) as caught:
        sam.load_sam(folder)
    assert str(folder) in str(caught.value)


def test_missing_weights_are_not_made_up(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """The library fills what is missing with random numbers; would fail if that went through."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_folders["sam"], tmp_path / "part")
    tensors = load_file(folder / "model.safetensors")
    del tensors["mask_decoder.iou_token.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 of the model's weights are not in .*iou_token"):
        sam.load_sam(folder)


def test_single_files_and_wrong_kinds(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    """Meta's own .pth says which folder is needed; a SAM is no detector."""
    (tmp_path / "sam_vit_b.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"single file of the original code.*facebook/sam"):
        sam.load_sam(tmp_path / "sam_vit_b.pth")
    with pytest.raises(ValueError, match="holds a model of type 'sam'; expected grounding-dino"):
        dino.load_grounding_dino(tiny_folders["sam"])
    with pytest.raises(ValueError, match="needs a phrase"):
        detector(tiny_folders["grounding-dino"]).detect(torch.rand(1, 3, 50, 71), (), 0.3, 0.25)
    with pytest.raises(ValueError, match="precision 'fp8' is unknown"):
        sam.load_sam(tiny_folders["sam"], "fp8")
