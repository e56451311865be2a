"""What is looked for and what is found: the types that detectors, segmenters and nodes share.

Pictures are (B, 3, H, W) in [0, 1]. Boxes are (N, 4), float32, x₀ y₀ x₁ y₁ in pixels of the picture, its corner 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Boxes:
    """Of one picture, best first.

    Attributes:
        boxes: (N, 4), inside of the picture.
        scores: (N,) in [0, 1].
        labels: N phrases.
    """

    boxes: Tensor
    scores: Tensor
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise ValueError(f"boxes must be (N, 4), x0 y0 x1 y1 in pixels; got {tuple(self.boxes.shape)}")
        if self.scores.shape != self.boxes.shape[:1] or len(self.labels) != len(self.boxes):
            raise ValueError(
                f"{len(self.boxes)} boxes need as many scores and labels; "
                f"got {tuple(self.scores.shape)} and {len(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: Sequence[int]) -> Boxes:
        """These rows, in this order."""
        return Boxes(self.boxes[list(rows)], self.scores[list(rows)], tuple(self.labels[row] for row in rows))

    @classmethod
    def none(cls) -> Boxes:
        """Nothing was found."""
        return cls(torch.zeros(0, 4), torch.zeros(0), ())


@dataclass(frozen=True)
class Hypotheses:
    """What a segmenter thinks that one box holds.

    Attributes:
        masks: (K, H, W) in [0, 1]; above ½ is inside. SAM: K = 3 (part, whole, all).
        own: (K,), the model's own estimate of each mask's IoU with the truth.
    """

    masks: Tensor
    own: Tensor


@dataclass(frozen=True)
class Candidate:
    """One hypothesis of one object and the terms of its choice.

    Attributes:
        index: the object's, in its picture.
        hypothesis: which of the K.
        iou: IoU(M, B), of the mask with the filled box, in [0, 1].
        area: |M| / |B|; above 1 where the mask leaves the box.
        own: the model's own score.
        value: what was maximised.
        chosen: whether it is the object's mask.
    """

    index: int
    hypothesis: int
    iou: float
    area: float
    own: float
    value: float
    chosen: bool


@dataclass(frozen=True)
class Objects:
    """Of one picture: a mask for each box, in the boxes' order.

    Attributes:
        masks: (N, H, W) float32 in [0, 1].
        boxes: (N, 4).
        scores: (N,) in [0, 1].
        labels: N phrases.
        candidates: all hypotheses with the terms of the choice.
    """

    masks: Tensor
    boxes: Tensor
    scores: Tensor
    labels: tuple[str, ...]
    candidates: tuple[Candidate, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def union(self) -> Tensor:
        """(H, W): what belongs to any object; zeros where there is none."""
        return self.masks.amax(0) if len(self.masks) else self.masks.new_zeros(self.masks.shape[1:])

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """The candidate of each object that became its mask."""
        return tuple(candidate for candidate in self.candidates if candidate.chosen)

    @classmethod
    def none(cls, height: int, width: int) -> Objects:
        """Nothing was found; the picture's size stays known."""
        return cls(torch.zeros(0, height, width), torch.zeros(0, 4), torch.zeros(0), ())


@runtime_checkable
class Detector(Protocol):
    """Phrases and pictures -> boxes."""

    name: str

    def detect(
        self, pictures: Tensor, phrases: Sequence[str], box_threshold: float, text_threshold: float
    ) -> list[Boxes]:
        """One :class:`Boxes` a picture, in order, on the CPU; of a picture without a find an empty one.

        Args:
            pictures: (B, 3, H, W) in [0, 1].
            phrases: what to look for, e.g. ``("a cat", "a remote control")``.
            box_threshold: lowest score of a box.
            text_threshold: lowest score by which a word becomes part of a box's label.
        """
        ...


@runtime_checkable
class Segmenter(Protocol):
    """Boxes and a picture -> hypotheses of masks."""

    name: str

    def hypotheses(self, picture: Tensor, boxes: Tensor) -> Iterator[Hypotheses]:
        """One :class:`Hypotheses` a box, in order, on the CPU, made when it is asked for: 64 at once need gigabytes.

        Args:
            picture: (3, H, W) in [0, 1].
            boxes: (N, 4).
        """
        ...


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """(N, 4) -> the same inside of the picture, corners in order, float32 on the CPU.

    Raises:
        ValueError: no (N, 4), or not finite.
    """
    boxes = boxes.detach().to("cpu", torch.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), x0 y0 x1 y1 in pixels; got {tuple(boxes.shape)}")
    if not all(math.isfinite(value) for value in boxes.flatten().tolist()):
        raise ValueError("boxes must be finite numbers of pixels; there is a NaN or an infinity among them")
    low = torch.minimum(boxes[:, :2], boxes[:, 2:])
    high = torch.maximum(boxes[:, :2], boxes[:, 2:])
    size = torch.tensor([width, height], dtype=torch.float32)
    zero = torch.zeros(2)
    return torch.cat([low.clamp(min=zero, max=size), high.clamp(min=zero, max=size)], 1)
