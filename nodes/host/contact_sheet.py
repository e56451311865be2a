"""Drawn pictures in rows, a prompt over each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MOST_ROWS = 60
_CELL, _GAP, _TEXT = 192, 6, 18


def contact_sheet(rows: Sequence[tuple[str, Tensor]]) -> Tensor:
    """Draw the sheet; rows beyond 60 are named in the last line only.

    Args:
        rows: (what stands above, pictures (B, H, W, 3) in [0, 1]).

    Returns:
        (1, H, W, 3) float32 in [0, 1].
    """
    shown = rows[:MOST_ROWS]
    scale = _CELL / max(max(pictures.shape[1:3]) for _, pictures in shown)
    size = [max(1, round(side * scale)) for side in shown[0][1].shape[1:3]]
    columns = max(len(pictures) for _, pictures in shown)
    high = _TEXT + size[0] + _GAP
    width = max(_GAP + columns * (size[1] + _GAP), 420)
    sheet = Image.new("RGB", (width, len(shown) * high + _GAP + (_TEXT if len(rows) > MOST_ROWS else 0)), (32, 32, 36))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default()
    for number, (label, pictures) in enumerate(shown):
        top = number * high + _GAP // 2
        letters = max(8, (width - 2 * _GAP) // 6)
        text = label if len(label) <= letters else f"{label[: letters - 3]}..."
        draw.text((_GAP, top + 2), text.encode("latin-1", "replace").decode("latin-1"), fill=(225, 225, 230), font=font)
        for place, picture in enumerate((pictures.clamp(0, 1) * 255).round().byte().numpy()):
            how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
            small = Image.fromarray(picture).resize((size[1], size[0]), how)
            sheet.paste(small, (_GAP + place * (size[1] + _GAP), top + _TEXT))
    if len(rows) > MOST_ROWS:
        draw.text(
            (_GAP, sheet.height - _TEXT), f"and {len(rows) - MOST_ROWS} more rows", fill=(160, 160, 170), font=font
        )
    return torch.from_numpy(np.asarray(sheet, dtype=np.float32) / 255)[None]
