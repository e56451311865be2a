"""What a feature network sees of a picture: resized, cut, scaled. A score is worth nothing without it being said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALLEST = 8
"""Pixels a side; below that, an enlarged picture is a smear, and its score says nothing."""

Colours = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Preprocess:
    """Resize the shorter side, cut out the middle, scale the colours.

    Attributes:
        resize: pixels that the shorter side gets; the longer one keeps the proportions, rounded down.
        crop: side of the square that is cut from the middle; at most `resize`.
        colours: mean and deviation, (v − mean) / std, v in [0, 1].
        interpolation: ``bicubic`` or ``bilinear``, with antialiasing, as Pillow.
        squash: both sides become `crop`, whatever the proportions; nothing is cut off.
    """

    resize: int
    crop: int
    colours: Colours = IMAGENET
    interpolation: str = "bicubic"
    squash: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"a square of {self.crop} cannot be cut from {self.resize} pixels")
        if self.interpolation not in ("bicubic", "bilinear"):
            raise ValueError(f"the interpolation {self.interpolation!r} is unknown; expected bicubic or bilinear")

    @property
    def description(self) -> str:
        """For tables, e.g. ``256 bicubic, crop 224``."""
        if self.squash:
            return f"squashed to {self.crop} {self.interpolation}"
        return f"{self.resize} {self.interpolation}, crop {self.crop}"

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, crop, crop), float32, on the pictures' device.

        Raises:
            ValueError: a side below :data:`SMALLEST` pixels.
        """
        mean, std = (torch.tensor(values, device=pictures.device).view(3, 1, 1) for values in self.colours)
        return (self.seen(pictures) - mean) / std

    def seen(self, pictures: Tensor) -> Tensor:
        """The square before its colours are scaled, in [0, 1]: bicubic weights overshoot, 8-bit pictures cannot."""
        check_size(pictures)
        size = (self.crop, self.crop) if self.squash else self._size(*pictures.shape[2:])
        small = functional.interpolate(pictures.float(), size, mode=self.interpolation, antialias=True).clamp(0, 1)
        top, left = (round((side - self.crop) / 2) for side in size)
        return small[..., top : top + self.crop, left : left + self.crop]

    def _size(self, high: int, wide: int) -> tuple[int, int]:
        if high <= wide:
            return self.resize, int(self.resize * wide / high)
        return int(self.resize * high / wide), self.resize


def check_size(pictures: Tensor) -> None:
    """Raises ValueError for pictures (…, H, W) with a side below :data:`SMALLEST` pixels."""
    high, wide = pictures.shape[-2:]
    if min(high, wide) < SMALLEST:
        raise ValueError(f"pictures of {wide} × {high} pixels show nothing to score; {SMALLEST} a side are needed")


def dino(side: int = 224) -> Preprocess:
    """DINO's and DINOv2's evaluation: 256 bicubic, middle 224, ImageNet's colours; in proportion for another side."""
    return Preprocess(round(side * 256 / 224), side)


def clip(side: int = 224) -> Preprocess:
    """CLIP's: the shorter side, bicubic, the middle square, its own colours."""
    return Preprocess(side, side, CLIP)


def same_sizes(pictures: Sequence[Tensor]) -> dict[tuple[int, ...], list[int]]:
    """Places of pictures by their shape, so that those of one shape can be stacked."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        places.setdefault(tuple(picture.shape), []).append(place)
    return places
