"""The pack's own subject finder as detector and as segmenter: works without a download, but knows no phrases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .choose import box_pixels
from .components import components
from .found import Boxes, Hypotheses

MARGIN = 0.15
"""Of the box's sides, on each side of it: what the network sees around a box that it looks into."""


class SubjectFinder:
    """A :class:`.found.Detector` and a :class:`.found.Segmenter`.

    Args:
        loaded: gives the network where it can run now, a ``segmentation.subject.SubjectSegmenter``: it has
            ``probability(pictures (B, 3, H, W) in [0, 1]) -> (B, H, W) in [0, 1]``.
    """

    def __init__(self, loaded: Callable[[], Any]) -> None:
        self.name = "built-in subject finder"
        self._loaded = loaded

    def detect(
        self, pictures: Tensor, phrases: Sequence[str], box_threshold: float, text_threshold: float
    ) -> list[Boxes]:
        """The pieces of what it takes for the subject; all get the first phrase as label, for it reads none."""
        label = phrases[0] if phrases else "subject"
        found = []
        for picture in pictures:
            boxes, _ = components(self._probability(picture))
            good = [row for row, score in enumerate(boxes.scores.tolist()) if score >= box_threshold]
            kept = boxes.take(sorted(good, key=lambda row: -float(boxes.scores[row])))
            found.append(Boxes(kept.boxes, kept.scores, (label,) * len(kept)))
        return found

    def hypotheses(self, picture: Tensor, boxes: Tensor) -> Iterator[Hypotheses]:
        """Of each box three: the whole picture's find in the box; another look at the box alone; what both say."""
        if not len(boxes):
            return
        whole = self._probability(picture)
        for box in boxes.tolist():
            rows, columns = box_pixels(box, *whole.shape)
            first, closer = torch.zeros_like(whole), torch.zeros_like(whole)
            first[rows, columns] = whole[rows, columns]
            around = tuple(_wider(part, size) for part, size in zip((rows, columns), whole.shape, strict=True))
            view = torch.zeros_like(whole)
            view[around] = self._probability(picture[:, around[0], around[1]])
            closer[rows, columns] = view[rows, columns]
            masks = torch.stack([first, closer, (first + closer) / 2])
            yield Hypotheses(masks, torch.tensor([expected_iou(mask) for mask in masks]))

    @torch.no_grad()
    def _probability(self, picture: Tensor) -> Tensor:
        network = self._loaded()
        weights = next(network.parameters())
        found: Tensor = network.probability(picture[None].to(weights.device, weights.dtype))[0]
        return found.detach().to("cpu", torch.float32).clamp(0, 1)


def expected_iou(probability: Tensor) -> float:
    """How well the mask (probability above ½) would do if each pixel were the subject with its probability.

    Expected intersection over expected union, Σ_{M} p / (|M| + Σ_{not M} p); 0 of an empty mask.
    """
    inside = probability > 0.5
    area = float(inside.sum())
    if not area:
        return 0.0
    return float(probability[inside].sum()) / (area + float(probability[~inside].sum()))


def _wider(part: slice, size: int) -> slice:
    more = round(MARGIN * (part.stop - part.start))
    return slice(max(0, part.start - more), min(size, part.stop + more))
