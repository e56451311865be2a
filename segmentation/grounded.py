"""Phrases and a picture -> objects: detect, drop duplicates, segment, choose. A picture at a time, so memory is bound.

Ren et al. (2024), Grounded SAM; Image-Alchemy §3.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .choose import EQUATION, LAMBDA, RULES, choose
from .found import Boxes, Candidate, Detector, Objects, Segmenter, clip_boxes


@dataclass(frozen=True)
class FindOptions:
    """How objects are found.

    Attributes:
        box_threshold, text_threshold: see :class:`.found.Detector`; Grounded SAM's are .30 and .25.
        most: objects in a picture, those with the best scores.
        overlap: a box whose IoU with a better one is above this is a duplicate; 1 keeps all.
        rule: one of :data:`.choose.RULES`.
        penalty: λ of Eq. 3.
    """

    box_threshold: float = 0.30
    text_threshold: float = 0.25
    most: int = 16
    overlap: float = 0.80
    rule: str = EQUATION
    penalty: float = LAMBDA

    def __post_init__(self) -> None:
        for name in ("box_threshold", "text_threshold", "overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        if self.most < 1:
            raise ValueError(f"the maximum number of objects must be 1 or more, got {self.most}")
        if self.rule not in RULES:
            raise ValueError(f"the choice {self.rule!r} is unknown; expected one of: {', '.join(RULES)}")


def split_phrases(text: str) -> tuple[str, ...]:
    """``"a cat, a dog\\nremote."`` -> ``("a cat", "a dog", "remote")``: a line, comma, semicolon or full stop apart."""
    return tuple(part for part in (" ".join(piece.split()) for piece in re.split(r"[\n,;.]", text)) if part)


def check_picture(picture: Tensor) -> None:
    """Raises ValueError unless `picture` is a float (3, H, W) in [0, 1]."""
    if picture.ndim != 3 or picture.shape[0] != 3 or not picture.numel():
        raise ValueError(f"a picture must be (3, H, W), got {tuple(picture.shape)}")
    if not picture.is_floating_point():
        raise ValueError(f"a picture must hold floats in [0, 1], got {picture.dtype}")
    low, high = (float(bound) for bound in picture.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"a picture must lie in [0, 1], got {low:.3g} to {high:.3g}; clamp it first")


def best_boxes(found: Boxes, height: int, width: int, options: FindOptions) -> Boxes:
    """Inside of the picture, best first, less duplicates and empty boxes, `options.most` at most."""
    from torchvision.ops import nms

    boxes = clip_boxes(found.boxes, height, width)
    scores = found.scores.detach().to("cpu", torch.float32)
    real = [row for row, (x0, y0, x1, y1) in enumerate(boxes.tolist()) if x1 > x0 and y1 > y0]
    inside = Boxes(boxes, scores, found.labels).take(real)
    if not len(inside):
        return inside
    if options.overlap >= 1:
        order = torch.argsort(inside.scores, descending=True, stable=True)
    else:
        order = nms(inside.boxes, inside.scores, options.overlap)
    return inside.take(order.tolist()[: options.most])


def find_objects(
    picture: Tensor,
    phrases: Sequence[str],
    detector: Detector | None,
    segmenter: Segmenter,
    options: FindOptions,
    given: Boxes | None = None,
    between: Callable[[], None] | None = None,
) -> Objects:
    """The objects of one picture (3, H, W) in [0, 1], best first.

    Args:
        phrases: what to look for.
        detector: finds boxes; not asked where they are given.
        given: boxes of another detector; its thresholds held there, so only duplicates are dropped here.
        between: called before each object; what it raises ends the search.

    Raises:
        ValueError: no picture; neither a detector nor boxes.
    """
    check_picture(picture)
    height, width = picture.shape[1:]
    if given is None:
        if detector is None:
            raise ValueError("there is neither a detector nor a box to look in; give one of them")
        given = detector.detect(picture[None], phrases, options.box_threshold, options.text_threshold)[0]
    boxes = best_boxes(given, height, width, options)
    if not len(boxes):
        return Objects.none(height, width)
    masks = torch.zeros(len(boxes), height, width)
    candidates: list[Candidate] = []
    rows = boxes.boxes.tolist()
    count = 0
    for index, found in enumerate(segmenter.hypotheses(picture, boxes.boxes)):
        if between is not None:
            between()
        best, about = choose(found, rows[index], options.rule, options.penalty, index)
        masks[index] = (found.masks[best] > 0.5).to("cpu")
        candidates += about
        count += 1
    if count != len(boxes):
        raise ValueError(f"{segmenter.name} gave masks for {count} of {len(boxes)} boxes")
    return Objects(masks, boxes.boxes, boxes.scores, boxes.labels, tuple(candidates))
