"""Grounding DINO (Liu et al. 2024) by transformers: phrases and pictures -> boxes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .found import Boxes, clip_boxes
from .model_folder import model_type, read_network, read_processor, to_pil

EXAMPLE = "IDEA-Research/grounding-dino-tiny"
MODEL_TYPES = ("grounding-dino", "mm-grounding-dino")


def load_grounding_dino(folder: Path, dtype: str = "fp32") -> Any:
    """The network, on the CPU, from a folder as on the hub.

    Raises:
        ValueError: the folder holds something else, or not all of it; transformers is too old for it.
    """
    kind = model_type(folder, MODEL_TYPES, EXAMPLE)
    import transformers

    name = "GroundingDinoForObjectDetection" if kind == MODEL_TYPES[0] else "MMGroundingDinoForObjectDetection"
    if not hasattr(transformers, name):
        raise ValueError(f"transformers {transformers.__version__} knows no {kind}; run `pip install -U transformers`")
    return read_network(getattr(transformers, name), folder, dtype)


def grounding_dino_processor(folder: Path) -> Any:
    """What scales its pictures and reads its text. Raises ValueError as :func:`load_grounding_dino`."""
    model_type(folder, MODEL_TYPES, EXAMPLE)
    import transformers

    return read_processor(transformers.GroundingDinoProcessor, folder)


class GroundingDino:
    """A :class:`.found.Detector`.

    Args:
        loaded: gives the network where it can run now.
        processor: the folder's own; it scales pictures and reads text.
        name: for reports.
    """

    def __init__(self, loaded: Callable[[], Any], processor: Any, name: str = "Grounding DINO") -> None:
        self.name = name
        self._loaded = loaded
        self._processor = processor

    @torch.no_grad()
    def detect(
        self, pictures: Tensor, phrases: Sequence[str], box_threshold: float, text_threshold: float
    ) -> list[Boxes]:
        """Labels are the words that reached `text_threshold`; where none did, the phrase if there is only one.

        Raises:
            ValueError: no phrase.
        """
        if not phrases:
            raise ValueError("Grounding DINO needs a phrase to look for, e.g. 'a cat'; several: a line each")
        return [self._one(picture, phrases, box_threshold, text_threshold) for picture in pictures]

    def _one(self, picture: Tensor, phrases: Sequence[str], box_threshold: float, text_threshold: float) -> Boxes:
        height, width = picture.shape[1:]
        inputs = self._processor(images=to_pil(picture), text=[list(phrases)], return_tensors="pt")
        network = self._loaded()
        weights = next(network.parameters())
        inputs = {
            name: value.to(weights.device, weights.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        # in 16 bits parts of the library's own code still make float32 (up to transformers 4.57), hence autocast
        half = weights.dtype if weights.dtype != torch.float32 else torch.bfloat16
        with torch.autocast(weights.device.type, half, enabled=weights.dtype != torch.float32):
            outputs = network(**inputs)
        outputs.logits, outputs.pred_boxes = outputs.logits.float(), outputs.pred_boxes.float()
        process = self._processor.post_process_grounded_object_detection
        named = "threshold" if "threshold" in inspect.signature(process).parameters else "box_threshold"  # before 4.51
        found = process(
            outputs,
            inputs["input_ids"],
            text_threshold=text_threshold,
            target_sizes=[(height, width)],
            **{named: box_threshold},
        )[0]
        texts = found["text_labels"] if "text_labels" in found else found["labels"]
        otherwise = phrases[0] if len(phrases) == 1 else ""
        boxes = Boxes(
            clip_boxes(found["boxes"], height, width),
            found["scores"].detach().to("cpu", torch.float32),
            tuple(str(text).strip() or otherwise for text in texts),
        )
        return boxes.take(torch.argsort(boxes.scores, descending=True, stable=True).tolist())
