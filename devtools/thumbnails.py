"""workflows/*.jpg, the pictures on the template browser's cards.

`python -m devtools.thumbnails <base>` makes them from what a run of the quickstart left behind; <base> holds the input/
and output/ of the server that ran it: .host/demo after `./demo`, or your own ComfyUI. `python -m devtools.thumbnails
--cards` makes those of the other workflows: shipped pictures that go in, and in words what comes out.
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


def card(pictures: Sequence[Image.Image], title: str, words: str) -> Image.Image:
    """Two pictures -> words, a line each, on a tile as high as both: a square of SIDE pixels."""
    sheet = Image.new("RGB", (SIDE, SIDE), PAPER)
    cell = (SIDE - 66 - EDGE - GAP) // 2
    column(sheet, pictures, EDGE, title, cell)
    left, bottom = SIDE - EDGE - cell, 66 + 2 * cell + GAP
    pen = ImageDraw.Draw(sheet)
    pen.rounded_rectangle((left, 66, SIDE - EDGE, bottom), 16, INK)
    lines = words.split("\n")
    for i, line in enumerate(lines):
        middle = (66 + bottom) // 2 + round((i - (len(lines) - 1) / 2) * 48)
        pen.text((left + cell // 2 + 8, middle), line, PAPER, ImageFont.load_default(36), anchor="mm")
    arrow(sheet, SIDE // 2, 66 + cell + GAP // 2)
    return sheet


def cards() -> dict[str, Image.Image]:
    """name -> thumbnail, of the workflows whose results are not drawn here."""
    from tinyworld.truth import true_picture

    def shown(subject: str, style: str) -> Image.Image:
        return Image.fromarray((true_picture(subject, style) * 255).round().astype("uint8"))

    doughnut = [shown("doughnut", "noto"), shown("doughnut", "twemoji")]
    return {
        "train_subject_sdxl": card(doughnut, "yours", "SDXL"),
        "train_subject_flux": card(doughnut, "yours", "Flux"),
        "train_style": card([shown("bear", "noto-v1"), shown("avocado", "noto-v1")], "a style", "any\nthing\nin it"),
        "train_two_subjects": card([doughnut[0], shown("duck", "noto")], "two", "one\nLoRA"),
        "train_low_memory": card(doughnut, "yours", "less\nmemory"),
        "inspect_and_resize_lora": card(doughnut, "a LoRA", "what is\nin it,\nsmaller"),
        "train_adaptive_rank": card(doughnut, "yours", "each\nlayer\nits rank"),
        "route_loras": card([shown("duck", "noto"), shown("avocado", "noto-v1")], "a folder", "the ones\nyou\nask for"),
        "compare_ranks": card(doughnut, "yours", "rank 4,\nrank 32,\nor learnt"),
        "merge_subject_style": card([shown("bat", "noto"), shown("bear", "noto-v1")], "two LoRAs", "one,\nwith\nboth"),
        "ziplora": card([shown("bat", "noto"), shown("bear", "noto-v1")], "two LoRAs", "neither\nspoils\nthe other"),
        "lorarar": card([shown("bat", "noto"), shown("bear", "noto-v1")], "any two", "one,\nin a\nmoment"),
        "train_subject_and_style": card([shown("bat", "noto"), shown("bear", "noto-v1")], "both", "taught\nat once"),
        "find_token": card([shown("doughnut", "noto"), shown("unicorn", "twemoji")], "a word", "that\nmeans\nnothing"),
        "image_alchemy": card([shown("panda", "noto"), shown("panda", "twemoji")], "yours", "in the\nmodel's\nscene"),
        "image_alchemy_two_subjects": card([shown("duck", "noto"), shown("peach", "noto")], "two", "in one\npicture"),
        "compare_methods": card(doughnut, "yours", "which\nway is\nbest?"),
        "evaluate_subject": card(doughnut, "yours", "did it\nwork?"),
        "merge_report": card([shown("bat", "noto"), shown("bear", "noto-v1")], "two LoRAs", "who\nrules\nwhere"),
    }


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
    for name, picture in (cards() if sys.argv[1] == "--cards" else draw(Path(sys.argv[1]))).items():
        picture.save(WORKFLOWS / f"{name}.jpg", quality=88, optimize=True)
        print(WORKFLOWS.name, f"{name}.jpg")
