"""workflows/*.jpg, the pictures on the template browser's cards, from what a run of the quickstart left behind.

`python -m devtools.thumbnails <base>`, where <base> holds the input/ and output/ of the server that ran it: .host/demo
after `./demo`, or your own ComfyUI.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from .checkpoint import QUICKSTART_FOLDER
from .paths import ROOT

SIDE, GAP, EDGE = 480, 12, 22
PAPER, INK, ACCENT = (28, 31, 48), (244, 239, 230), (224, 69, 123)
WORKFLOWS = ROOT / "workflows"


def newest(folder: Path, pattern: str, count: int) -> list[Image.Image]:
    """The pictures of the last run that match `pattern`, at most `count`, in the order of their names.

    Raises:
        ValueError: there is none.
    """
    found = sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime)[-count:]
    if not found:
        raise ValueError(f"no {pattern} in {folder}: run the quickstart first")
    return [on_white(path) for path in sorted(found)]


def on_white(path: Path) -> Image.Image:
    """RGB, what is transparent shown white, as training sees it."""
    with Image.open(path) as opened:
        picture = opened.convert("RGBA")
    paper = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(paper, picture).convert("RGB")


def column(sheet: Image.Image, pictures: Sequence[Image.Image], left: int, title: str, cell: int) -> None:
    """Two pictures under each other, below a word."""
    pen = ImageDraw.Draw(sheet)
    pen.text((left + cell // 2, 34), title, INK, ImageFont.load_default(30), anchor="mm")
    for i, picture in enumerate(pictures[:2]):
        tile(sheet, picture, (left, 66 + i * (cell + GAP)), cell)


def tile(sheet: Image.Image, picture: Image.Image, at: tuple[int, int], cell: int) -> None:
    """One picture with round corners; small ones are enlarged smoothly."""
    mask = Image.new("L", (cell * 4, cell * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, cell * 4 - 1, cell * 4 - 1), 64, 255)
    smooth = picture.resize((cell, cell), Image.Resampling.BICUBIC)
    sheet.paste(smooth, at, mask.resize((cell, cell), Image.Resampling.LANCZOS))


def arrow(sheet: Image.Image, x: int, y: int, size: int = 34) -> None:
    """A disc with an arrow to the right."""
    pen = ImageDraw.Draw(sheet)
    pen.ellipse((x - size, y - size, x + size, y + size), ACCENT, PAPER, 6)
    pen.line((x - 15, y, x + 13, y), INK, 7)
    pen.polygon([(x + 6, y - 14), (x + 22, y), (x + 6, y + 14)], INK)


def two_columns(left: Sequence[Image.Image], right: Sequence[Image.Image], titles: tuple[str, str]) -> Image.Image:
    """left -> right, two pictures each: a square of SIDE pixels."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    cell = (SIDE - 66 - EDGE - GAP) // 2
    columns = (EDGE, SIDE - EDGE - cell)
    for pictures, x, title in zip((left, right), columns, titles, strict=True):
        column(sheet, pictures, x, title, cell)
    arrow(sheet, SIDE // 2, 66 + cell + GAP // 2)
    return sheet


def draw(base: Path) -> dict[str, Image.Image]:
    """name -> thumbnail, of every shipped workflow."""
    folder = base / "output" / "likeness"
    references = newest(base / "input" / QUICKSTART_FOLDER, "*.png", 8)
    before, after = newest(folder, "before_1_*.png", 4), newest(folder, "after_1_*.png", 4)
    others = newest(folder, "after_2_*.png", 4)
    return {
        "quickstart": two_columns(before, after, ("before", "after")),
        "train_your_subject": two_columns(references, others, ("yours", "new")),
        "use_a_lora": two_columns([before[0], before[-1]], [others[0], after[-1]], ("base", "with LoRA")),
    }


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for name, picture in draw(Path(sys.argv[1])).items():
        picture.save(WORKFLOWS / f"{name}.jpg", quality=88, optimize=True)
        print(WORKFLOWS.name, f"{name}.jpg")
