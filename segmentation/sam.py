"""SAM (Kirillov et al. 2023) and SAM 2 (Ravi et al. 2024) by transformers: a picture and boxes -> masks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .found import Hypotheses
from .model_folder import model_type, read_network, read_processor, to_pil

EXAMPLE = "facebook/sam-vit-base or facebook/sam2.1-hiera-small"
CLASSES = {  # model_type: (network, processor); SAM 2's folders on the hub say sam2_video, for they hold both
    "sam": ("SamModel", "SamProcessor"),
    "sam2": ("Sam2Model", "Sam2Processor"),
    "sam2_video": ("Sam2Model", "Sam2Processor"),
}
AT_ONCE = 8
"""Boxes that the decoder takes at a time; the picture's embedding is made once."""


def load_sam(folder: Path, dtype: str = "fp32") -> Any:
    """The network of a SAM or SAM 2, on the CPU, from a folder as on the hub.

    Raises:
        ValueError: the folder holds something else, or not all of it; transformers is too old for it.
    """
    return read_network(_kind(folder, 0), folder, dtype)


def sam_processor(folder: Path) -> Any:
    """What scales its pictures, boxes and masks. Raises ValueError as :func:`load_sam`."""
    return read_processor(_kind(folder, 1), folder)


def _kind(folder: Path, which: int) -> Any:
    names = CLASSES[model_type(folder, tuple(CLASSES), EXAMPLE)]
    import transformers

    if not hasattr(transformers, names[which]):
        raise ValueError(
            f"transformers {transformers.__version__} has no {names[which]}, which {folder} needs; run "
            "`pip install -U transformers` (SAM 2: 4.56 or newer)"
        )
    return getattr(transformers, names[which])


class Sam:
    """A :class:`.found.Segmenter`: three hypotheses a box.

    Args:
        loaded: gives the network where it can run now.
        processor: the folder's own; it scales pictures and boxes, and masks back.
        name: for reports.
    """

    def __init__(self, loaded: Callable[[], Any], processor: Any, name: str = "SAM") -> None:
        self.name = name
        self._loaded = loaded
        self._processor = processor

    def hypotheses(self, picture: Tensor, boxes: Tensor) -> Iterator[Hypotheses]:
        """See :class:`.found.Segmenter`. The masks are what the library makes of the logits: 0 or 1."""
        if not len(boxes):
            return
        rows = [[float(value) for value in box] for box in boxes]
        inputs = self._processor(images=to_pil(picture), input_boxes=[rows], return_tensors="pt")
        embeddings = None
        for first in range(0, len(rows), AT_ONCE):
            network = self._loaded()
            weights = next(network.parameters())
            if embeddings is None:
                embeddings = self._embed(network, inputs["pixel_values"].to(weights.device, weights.dtype))
            part = inputs["input_boxes"][:, first : first + AT_ONCE].to(weights.device, weights.dtype)
            logits, own = self._decode(network, embeddings, part)
            for number in range(part.shape[1]):  # one at a time: at 4096² a box's three masks are 200 MB
                yield Hypotheses(self._to_picture(logits[:, number], inputs), own[number])

    @torch.no_grad()
    def _embed(self, network: Any, pixels: Tensor) -> Any:
        return network.get_image_embeddings(pixels)

    @torch.no_grad()
    def _decode(self, network: Any, embeddings: Any, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(1, n, 3, h, w) logits and (n, 3) scores, float32, on the CPU."""
        found = network(image_embeddings=embeddings, input_boxes=boxes, multimask_output=True)
        return found.pred_masks.to("cpu", torch.float32), found.iou_scores[0].to("cpu", torch.float32)

    def _to_picture(self, logits: Tensor, inputs: Any) -> Tensor:
        """(1, 3, h, w) logits -> (3, H, W) of 0 and 1."""
        process = self._processor.image_processor.post_process_masks
        sizes = {"original_sizes": inputs["original_sizes"].tolist()}
        if "reshaped_input_sizes" in inspect.signature(process).parameters:  # SAM pads to a square, SAM 2 stretches
            sizes["reshaped_input_sizes"] = inputs["reshaped_input_sizes"].tolist()
        masks: Tensor = process([logits], **sizes)[0][0]
        return masks.to(torch.float32)
