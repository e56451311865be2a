"""Crop, sample, stitch: a small subject is painted at the size that the model knows, and put back without a seam."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from .masks import extent


@dataclass(frozen=True)
class Crop:
    """A piece of a picture, and the size at which it is worked on.

    Attributes:
        top, left, bottom, right: in pixels of the picture, the latter two excluded.
        height, width: of the work, multiples of what was asked.
    """

    top: int
    left: int
    bottom: int
    right: int
    height: int
    width: int


def crop_around(mask: Tensor, context: float, size: int, multiple: int = 8) -> Crop | None:
    """The piece around all that is above 0, with room, as near to a square as the picture allows.

    Args:
        mask: (H, W).
        context: sides of the piece, of the longer side of what is masked; 1 is none.
        size: longer side of the work in pixels; 0: the piece's own.
        multiple: that both sides of the work are multiples of.

    Returns:
        None where nothing is masked.

    Raises:
        ValueError: the context is below 1, or the size below `multiple`.
    """
    if context < 1 or multiple < 1 or (size and size < multiple):
        raise ValueError(f"context must be at least 1 and size 0 or at least {multiple}; got {context:g} and {size}")
    found = extent(mask)
    if found is None:
        return None
    side = math.ceil(max(found[2] - found[0], found[3] - found[1]) * context)
    top, bottom = _span(found[0], found[2], side, mask.shape[0])
    left, right = _span(found[1], found[3], side, mask.shape[1])
    scale = size / max(bottom - top, right - left) if size else 1.0
    height, width = (max(multiple, round(n * scale / multiple) * multiple) for n in (bottom - top, right - left))
    return Crop(top, left, bottom, right, height, width)


def _span(low: int, high: int, side: int, most: int) -> tuple[int, int]:
    """About the middle of [low, high), `side` long, inside of [0, most), never cutting what is masked."""
    side = min(max(side, high - low), most)
    begin = min(max(0, (low + high - side) // 2), most - side)
    return begin, begin + side


def cut(picture: Tensor, crop: Crop) -> Tensor:
    """(C, H, W) -> (C, height, width) of the work, bicubic, in [0, 1] (masks, too)."""
    part = picture[:, crop.top : crop.bottom, crop.left : crop.right]
    return _resized(part, crop.height, crop.width)


def stitch(picture: Tensor, patch: Tensor, mask: Tensor, crop: Crop) -> Tensor:
    """Put a worked piece back: mask·patch + (1 − mask)·picture; where the mask is 0, the picture bit for bit.

    Args:
        picture: (C, H, W).
        patch: (C, height, width) of the crop.
        mask: (H, W) in [0, 1], of the whole picture.
    """
    rows, columns = slice(crop.top, crop.bottom), slice(crop.left, crop.right)
    back = _resized(patch.to(picture.dtype), crop.bottom - crop.top, crop.right - crop.left)
    out = picture.clone()
    out[:, rows, columns] = blend(picture[:, rows, columns], back, mask[rows, columns])
    return out


def blend(picture: Tensor, other: Tensor, mask: Tensor) -> Tensor:
    """mask·other + (1 − mask)·picture, (C, H, W) and (H, W); exactly the one or the other where the mask is 0 or 1."""
    mixed = mask * other + (1 - mask) * picture
    return torch.where(mask <= 0, picture, torch.where(mask >= 1, other, mixed.to(picture.dtype)))


def seam_error(before: Tensor, after: Tensor, mask: Tensor) -> float:
    """How much of a seam there is: the mean step between neighbours, one inside of the mask (above 0), one outside,
    beyond the step that was there before; in [0, 1] of the picture's range, 0 without a mask's edge.

    before, after: (C, H, W); mask: (H, W).
    """
    inside = mask > 0
    steps = []
    for axis in (0, 1):
        size = mask.shape[axis]
        one, other = slice(0, size - 1), slice(1, size)
        edge = inside.narrow(axis, 0, size - 1) != inside.narrow(axis, 1, size - 1)
        for picture in (before, after):
            along = picture[:, one] - picture[:, other] if axis == 0 else picture[:, :, one] - picture[:, :, other]
            steps.append(along.float().abs().mean(0)[edge])
    was, now = torch.cat([steps[0], steps[2]]), torch.cat([steps[1], steps[3]])
    return float((now - was).clamp_min(0).mean()) if len(was) else 0.0


def _resized(part: Tensor, height: int, width: int) -> Tensor:
    if part.shape[1:] == (height, width):
        return part
    whole = functional.interpolate(part[None].float(), size=(height, width), mode="bicubic", antialias=True)
    return whole[0].clamp(0, 1).to(part.dtype)
