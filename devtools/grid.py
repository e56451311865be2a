"""The demo's picture: references | before | after, a labelled row for each prompt and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

GAP, LABEL, HEAD = 6, 34, 78
INK, FAINT, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """The pictures of one prompt and seed, drawn by the model as it was and by the model that was taught."""

    label: str
    before: Sequence[Image.Image]
    after: Sequence[Image.Image]


def draw(
    references: Sequence[Image.Image], rows: Sequence[Row], title: str, footer: str, cell: int = 128
) -> Image.Image:
    """One RGB picture. `cell` is the side of each small picture; tiny ones are enlarged without smoothing."""
    columns = max(len(row.before) for row in rows)
    left = 2 * cell + GAP
    block = columns * (cell + GAP) - GAP
    starts = (GAP * 3, GAP * 3 + left + GAP * 6, GAP * 3 + left + block + GAP * 12)
    width = starts[2] + block + GAP * 3
    height = HEAD + max(len(rows) * (LABEL + cell + GAP), (len(references) + 1) // 2 * (cell + GAP) + LABEL) + LABEL
    sheet = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(sheet)
    large, middle = ImageFont.load_default(24), ImageFont.load_default(17)
    pen.text((starts[0], GAP * 2), title, INK, large)
    for x, text in zip(starts, ("the reference pictures", "before", "after"), strict=True):
        pen.text((x, HEAD - 28), text, INK, middle)
    for i, picture in enumerate(references):
        at = (starts[0] + i % 2 * (cell + GAP), HEAD + LABEL + i // 2 * (cell + GAP))
        sheet.paste(_fit(picture, cell), at)
    for i, row in enumerate(rows):
        y = HEAD + i * (LABEL + cell + GAP)
        pen.text((starts[1], y + 8), row.label, INK, middle)
        for x, pictures in ((starts[1], row.before), (starts[2], row.after)):
            for j, picture in enumerate(pictures):
                sheet.paste(_fit(picture, cell), (x + j * (cell + GAP), y + LABEL))
    pen.text((starts[0], height - LABEL + 8), footer, FAINT, middle)
    return sheet


def open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def _fit(picture: Image.Image, cell: int) -> Image.Image:
    how = Image.Resampling.NEAREST if max(picture.size) <= cell else Image.Resampling.LANCZOS
    scale = cell / max(picture.size)
    resized = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), how)
    square = Image.new("RGB", (cell, cell), PAPER)
    square.paste(resized, ((cell - resized.width) // 2, (cell - resized.height) // 2))
    return square
