"""What is trained on: pictures with captions, and the cached latents and conditions made of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .buckets import Fit, fit
from .captions import class_caption, filler
from .denoiser import Cond
from .reading import ALPHAS, check_file, read_caption, read_mask, read_picture
from .sheet import preview_sheet


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
        variants: captions to train with in place of ``caption``, one at each visit; empty: that one alone.
    """

    pixels: Tensor
    mask: Tensor | None
    caption: str
    source: str
    original_size: tuple[int, int]
    crop: tuple[int, int]
    target_size: tuple[int, int]
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class PictureSet:
    """Pictures to train on.

    Attributes:
        pictures: in natural order of their names.
        repeats: times each is seen in an epoch.
        flip: each is mirrored half of the times.
        trigger: the word that will stand for the subject.
        class_noun: what kind of thing it is.
        parts: the sets that it was combined of, one a subject; their pictures in turn are ``pictures``.
        balanced: each part is seen as often as the others.
    """

    pictures: tuple[Picture, ...]
    repeats: int
    flip: bool
    trigger: str
    class_noun: str
    parts: tuple[PictureSet, ...] = ()
    balanced: bool = False

    def members(self) -> tuple[PictureSet, ...]:
        """One set a subject: the parts, or this one."""
        return self.parts or (self,)


@dataclass(frozen=True)
class Example:
    """One picture as the loop eats it, made once.

    Attributes:
        latents: (C, h, w) float32 in the model's space (scaled and shifted as the model expects).
        flipped: latents of the mirrored picture, or None when it is never mirrored.
        cond: made of its caption by the Denoiser's owner.
        mask: (h, w) float32 in [0, 1] at the latents' size, or None.
        repeats: times it is seen in an epoch.
        prior_cond: made of the same caption with the class noun in the subject's place, or None.
        subject: number of the dataset it came from, where several are trained at once.
        variants: conditions to train with in place of ``cond``, one at each visit; empty: that one alone.
        empty: the condition of the empty caption for a picture of this size and crop; None: the training set's.
    """

    latents: Tensor
    flipped: Tensor | None
    cond: Cond
    mask: Tensor | None
    repeats: int = 1
    prior_cond: Cond | None = None
    subject: int = 0
    variants: tuple[Cond, ...] = ()
    empty: Cond | None = None


@dataclass(frozen=True)
class TrainingSet:
    """What is trained on.

    Attributes:
        examples: of all subjects.
        empty: the condition of the empty caption, for caption dropout of examples without one of their own.
        prior: class pictures to be kept.
        balanced: each subject is seen as often as the others.
    """

    examples: tuple[Example, ...]
    empty: Cond
    prior: tuple[Example, ...] = ()
    balanced: bool = False


__all__ = [
    "Example",
    "Picture",
    "PictureSet",
    "TrainingSet",
    "class_caption",
    "from_images",
    "load_folder",
    "preview_sheet",
]

MASK_ENDING = "-masklabel"
"""``cat-masklabel.png`` is the mask of ``cat.jpg``."""

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif"})


def load_folder(
    folder: Path,
    *,
    trigger: str = "sks",
    class_noun: str = "subject",
    caption_template: str = "a picture of {trigger} {class}",
    resolution: int = 512,
    step: int = 8,
    repeats: int = 1,
    flip: bool = False,
    alpha: str = "composite",
) -> PictureSet:
    """Read the pictures of a folder (not of folders in it), in natural order of their names: 2.png before 10.png.

    Links are followed, to files anywhere.

    Args:
        folder: with pictures, and captions beside them: ``cat.txt`` for ``cat.jpg``. In a caption, ``{trigger}`` and
            ``{class}`` are filled in. Masks beside them: ``cat-masklabel.png`` for ``cat.jpg``, white where the loss
            counts.
        caption_template: the caption of a picture without a file of its own.
        resolution: pictures are scaled down to about resolution² pixels, and never up.
        step: buckets are multiples of it, in pixels; 8 where latents are an eighth, 64 as SDXL was trained.
        repeats: times each picture is seen in an epoch.
        flip: mirror each half of the times.
        alpha: transparency is laid on white (``composite``), or is the ``mask`` of pictures without a mask file.

    Raises:
        ValueError: folder missing, no pictures, a file that cannot be read (named), a mask without a picture or of
            another shape, a picture smaller than ``step``.
    """
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}. Make it and put the training pictures into it.")
    files = sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")),
        key=lambda path: natural_key(path.name),
    )
    if not files:
        raise ValueError(
            f"There are no pictures in {folder}. Put some there ({', '.join(sorted(EXTENSIONS))}); folders inside it "
            f"are not searched."
        )
    files, masks = _without_masks(files)
    _check_alpha(alpha)
    fill = filler(trigger, class_noun)
    default = fill(caption_template, "The caption template")
    pictures = []
    for path in masks.values():
        check_file(path)
    for path in files:
        check_file(path)
        text = path.with_suffix(".txt")
        caption = default
        if text.exists() or text.is_symlink():
            check_file(text)
            caption = fill(read_caption(text), "")
        image, mask = read_picture(path, alpha)
        if path.stem in masks:
            mask = read_mask(masks[path.stem], image.size)
        pictures.append(_picture(image, mask, caption, path.name, resolution, step))
    return _picture_set(pictures, repeats, flip, trigger, class_noun)


def from_images(
    images: Tensor,
    masks: Tensor | None = None,
    *,
    trigger: str = "sks",
    class_noun: str = "subject",
    caption_template: str = "a picture of {trigger} {class}",
    resolution: int = 512,
    step: int = 8,
    repeats: int = 1,
    flip: bool = False,
    alpha: str = "composite",
) -> PictureSet:
    """Take the pictures of an IMAGE batch, each with the template's caption. Other arguments as :func:`load_folder`.

    Args:
        images: (B, H, W, 3) in [0, 1]; of (B, H, W, 4) the fourth is alpha.
        masks: (B, H, W) or (1, H, W) in [0, 1], 1 where the loss counts, or None.

    Raises:
        ValueError: shapes that do not fit, or pictures smaller than ``step``.
    """
    if images.ndim != 4 or images.shape[-1] not in (3, 4) or not images.shape[0]:
        raise ValueError(f"Pictures are {tuple(images.shape)}; expected (count, height, width, 3).")
    if masks is not None:
        masks = masks.unsqueeze(0) if masks.ndim == 2 else masks
        if masks.shape[1:] != images.shape[1:3] or masks.shape[0] not in (1, images.shape[0]):
            raise ValueError(
                f"Masks are {tuple(masks.shape)} and pictures {tuple(images.shape)}; expected one mask for each "
                f"picture or one for all, of the pictures' size."
            )
    _check_alpha(alpha)
    if images.shape[-1] == 4:
        images, opacity = images[..., :3], images[..., 3:]
        if alpha == "mask" and masks is None:
            masks = opacity[..., 0]
        else:
            images = images * opacity + (1 - opacity)
    pixels = (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    caption = filler(trigger, class_noun)(caption_template, "The caption template")
    pictures = [
        _picture(
            Image.fromarray(pixels[index]),
            None if masks is None else masks[index % masks.shape[0]].detach().cpu().float().clamp(0, 1).numpy(),
            caption,
            f"image {index + 1}",
            resolution,
            step,
        )
        for index in range(len(pixels))
    ]
    return _picture_set(pictures, repeats, flip, trigger, class_noun)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which numbers count as numbers and case does not count."""
    parts = re.split(r"(\d+)", name.casefold())
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def _without_masks(files: Sequence[Path]) -> tuple[list[Path], dict[str, Path]]:
    """(the pictures, stem of a picture -> its mask file)."""
    pictures = [path for path in files if not path.stem.endswith(MASK_ENDING)]
    masks = {path.stem.removesuffix(MASK_ENDING): path for path in files if path.stem.endswith(MASK_ENDING)}
    if alone := sorted(set(masks) - {path.stem for path in pictures}):
        raise ValueError(
            f"{masks[alone[0]].name} is the mask of a picture {alone[0]!r}, which is not there. Add it, or rename the "
            f"file if it is no mask."
        )
    return pictures, masks


def _check_alpha(alpha: str) -> None:
    if alpha not in ALPHAS:
        raise ValueError(f"alpha is {alpha!r}; choose one of {', '.join(ALPHAS)}.")


def _picture(
    image: Image.Image, mask: np.ndarray | None, caption: str, source: str, resolution: int, step: int
) -> Picture:
    width, height = image.size
    try:
        place = fit(height, width, resolution, step)
    except ValueError as why:
        raise ValueError(f"{source}: {why}") from why
    pixels = torch.from_numpy(np.array(_resized(image, place), dtype=np.uint8))
    shrunk = None
    if mask is not None:
        # The same window of the mask, without LANCZOS' overshoot.
        resized = _resized(Image.fromarray(mask.astype(np.float32)), place, Image.Resampling.BOX)
        shrunk = torch.from_numpy(np.array(resized, dtype=np.float32)).clamp_(0, 1)
    return Picture(pixels, shrunk, caption, source, (height, width), place.crop, place.size)


def _resized(image: Image.Image, place: Fit, how: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    height, width = place.size
    if image.size == (width, height):
        return image
    return image.resize((width, height), how, box=place.box)


def _picture_set(pictures: list[Picture], repeats: int, flip: bool, trigger: str, class_noun: str) -> PictureSet:
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}; it must be at least 1.")
    return PictureSet(tuple(pictures), repeats, flip, trigger, class_noun)
