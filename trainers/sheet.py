"""A sheet of all training pictures with what will be learnt of each: caption, bucket, name."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

if TYPE_CHECKING:
    from .dataset import PictureSet

_CELL = 192
_TEXT = 58
_GAP = 8
_MOST = 60


def preview_sheet(pictures: PictureSet, columns: int = 6) -> Tensor:
    """Draw the pictures of a set in rows, each with its caption and bucket size under it. At most 60 of them.

    A masked part is dimmed.

    Returns:
        (1, H, W, 3) float32 in [0, 1], an IMAGE of the host.
    """
    shown = pictures.pictures[:_MOST]
    more = len(pictures.pictures) - len(shown)
    columns = max(1, min(columns, len(shown)))
    rows = -(-len(shown) // columns)
    footer = 24
    sheet = Image.new(
        "RGB", (_GAP + columns * (_CELL + _GAP), _GAP + rows * (_CELL + _TEXT + _GAP) + footer), (32, 32, 36)
    )
    draw = ImageDraw.Draw(sheet)
    font = _font(12)
    for number, picture in enumerate(shown):
        left = _GAP + number % columns * (_CELL + _GAP)
        top = _GAP + number // columns * (_CELL + _TEXT + _GAP)
        pixels = picture.pixels.numpy()
        if picture.mask is not None:
            pixels = (pixels * (0.25 + 0.75 * picture.mask.numpy()[..., None])).astype(np.uint8)
        image = Image.fromarray(pixels)
        scale = _CELL / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
        sheet.paste(small, (left + (_CELL - small.width) // 2, top + (_CELL - small.height) // 2))
        height, width = picture.target_size
        caption = textwrap.wrap(picture.caption, 31, max_lines=2, placeholder=" …") or ["(empty caption)"]
        text = "\n".join([*caption, f"{width}×{height}  {textwrap.shorten(picture.source, 20, placeholder='…')}"])
        draw.multiline_text((left, top + _CELL + 4), text, fill=(225, 225, 230), font=font, spacing=3)
    line = "; ".join(
        (f"{member.trigger}: " if pictures.parts else "")
        + f"{len(member.pictures)} pictures × {member.repeats}"
        + (", mirrored at random" if member.flip else "")
        for member in pictures.members()
    )
    line += f" ({more} more not shown)" if more else ""
    draw.text((_GAP, sheet.height - footer), line, fill=(160, 160, 170), font=font)
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):  # Pillow before 10.1, or without FreeType
        return ImageFont.load_default()
