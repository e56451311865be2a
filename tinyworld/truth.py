"""The true pictures that tests and benchmarks need, shipped as one file: `heldout.zip` (lossless WebP, RGBA).

All of held-out subjects and styles; and for libraries of LoRAs some further subjects that the model never saw, and
some that it knows, in the styles that it knows.

`python -m tinyworld.truth --references <subject> <folder>` writes a subject's reference pictures with captions, and
`--style <style> <folder>` pictures of many things in one style.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .dataset import caption, words
from .pictures import composite
from .split import STYLES, Split, library_subjects, load_split, style_subjects

ARCHIVE = Path(__file__).with_name("heldout.zip")
HELD_BACK_STYLE = "fluent-emoji"  # references never show it, so that a test can ask for it
TRIGGER = "sks"

Pictures = dict[tuple[str, str], NDArray[np.uint8]]


def shipped(split: Split) -> list[tuple[str, str]]:
    """(subject, style) of every picture in the file."""
    pairs = [(name, style) for name in split.held_out_subjects for style in STYLES]
    pairs += [(name, style) for name in split.pretrain_subjects for style in split.held_out_styles]
    known = (*library_subjects(split), *style_subjects(split))
    return pairs + [(name, style) for name in known for style in split.pretrain_styles]


def write_archive(pictures: Pictures, path: Path = ARCHIVE) -> None:
    """(subject, style) -> RGBA (64, 64, 4) uint8, into one zip; the same pictures give the same bytes."""
    temporary = path.with_suffix(".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for (subject, style), picture in sorted(pictures.items()):
            buffer = io.BytesIO()
            clear = picture * (picture[..., 3:] > 0)  # the colour under full transparency is noise
            Image.fromarray(clear).save(buffer, "WEBP", lossless=True, quality=100, method=4, exact=True)
            archive.writestr(zipfile.ZipInfo(f"{subject}/{style}.webp"), buffer.getvalue())
    temporary.replace(path)


@cache
def held_out_pictures(path: Path = ARCHIVE) -> Pictures:
    """Every shipped true picture: (subject, style) -> RGBA uint8 (64, 64, 4)."""
    pictures: Pictures = {}
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            subject, file = name.split("/")
            with archive.open(name) as data:
                pictures[subject, file.removesuffix(".webp")] = np.asarray(Image.open(data).convert("RGBA"))
    return pictures


def reference_styles() -> tuple[str, ...]:
    """Styles that a subject's references show: those of pretraining but one, which is kept for the test."""
    return tuple(style for style in load_split().pretrain_styles if style != HELD_BACK_STYLE)


def true_picture(subject: str, style: str, background: tuple[int, int, int] = (255, 255, 255)) -> NDArray[np.float32]:
    """The truth on a plain colour: RGB float32 (64, 64, 3) in [0, 1]."""
    try:
        return composite(held_out_pictures()[subject, style], background)
    except KeyError:
        raise ValueError(f"no true picture of {subject!r} in style {style!r}; styles are {', '.join(STYLES)}") from None


def write_references(
    subject: str, folder: Path, styles: tuple[str, ...] | None = None, trigger: str = TRIGGER
) -> list[Path]:
    """Reference PNGs of one subject that the model never saw, with captions such as "a flat picture of a sks"."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for style in styles or reference_styles():
        path = folder / f"{subject}-{style}.png"
        picture = (true_picture(subject, style) * 255).round().astype(np.uint8)
        Image.fromarray(picture).save(path)
        path.with_suffix(".txt").write_text(caption(trigger, style, None) + "\n")
        written.append(path)
    return written


def write_style(style: str, folder: Path, count: int = 24, trigger: str = TRIGGER) -> list[Path]:
    """PNGs of `count` (at most 24 for a style of pretraining) subjects that the model knows: "a sks picture of a cat".

    Raises:
        ValueError: there is no such style, or not so many pictures of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for subject in style_subjects(load_split(), count):
        path = folder / f"{subject}.png"
        Image.fromarray((true_picture(subject, style) * 255).round().astype(np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"a {trigger} picture of a {words(subject)}\n")
        written.append(path)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted = parser.add_mutually_exclusive_group(required=True)
    wanted.add_argument("--references", nargs=2, metavar=("SUBJECT", "FOLDER"))
    wanted.add_argument("--style", nargs=2, metavar=("STYLE", "FOLDER"))
    parser.add_argument("--trigger", default=TRIGGER, help="the subject's or style's word in captions")
    arguments = parser.parse_args()
    if arguments.references:
        name, target = arguments.references
        write_references(name, Path(target), trigger=arguments.trigger)
    else:
        write_style(arguments.style[0], Path(arguments.style[1]), trigger=arguments.trigger)
