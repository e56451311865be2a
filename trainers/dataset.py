"""What is trained on: pictures with captions, and the cached latents and conditions made of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .denoiser import Cond


@dataclass(frozen=True)
class Picture:
    """One training picture at its bucket's size.

    Attributes:
        pixels: (H, W, 3) uint8.
        mask: (H, W) float32 in [0, 1], 1 where the loss counts, or None.
        caption: what the text encoder gets.
        source: file name or "image 3", for messages.
        original_size: (height, width) of the upright picture before scaling.
        crop: (top, left) of the bucket inside the scaled picture.
        target_size: (height, width) of the bucket, that of ``pixels``.
    """

    pixels: Tensor
    mask: Tensor | None
    caption: str
    source: str
    original_size: tuple[int, int]
    crop: tuple[int, int]
    target_size: tuple[int, int]


@dataclass(frozen=True)
class PictureSet:
    """Pictures to train on.

    Attributes:
        pictures: in natural order of their names.
        repeats: times each is seen in an epoch.
        flip: each is mirrored half of the times.
        trigger: the word that will stand for the subject.
        class_noun: what kind of thing it is.
    """

    pictures: tuple[Picture, ...]
    repeats: int
    flip: bool
    trigger: str
    class_noun: str


@dataclass(frozen=True)
class Example:
    """One picture as the loop eats it, made once.

    Attributes:
        latents: (C, h, w) float32 in the model's space (scaled and shifted as the model expects).
        flipped: latents of the mirrored picture, or None when it is never mirrored.
        cond: made of its caption by the Denoiser's owner.
        mask: (h, w) float32 in [0, 1] at the latents' size, or None.
        repeats: times it is seen in an epoch.
    """

    latents: Tensor
    flipped: Tensor | None
    cond: Cond
    mask: Tensor | None
    repeats: int = 1


@dataclass(frozen=True)
class TrainingSet:
    """All examples, and the condition of the empty caption (for caption dropout)."""

    examples: tuple[Example, ...]
    empty: Cond
