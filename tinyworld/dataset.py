"""Pretraining data: subject × style pictures on plain backgrounds, with captions from templates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .pictures import MARGIN
from .split import STYLE_WORDS

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "red": (214, 69, 65),
    "blue": (65, 120, 214),
    "green": (80, 170, 95),
    "yellow": (245, 212, 66),
    "pink": (244, 164, 196),
    "gray": (150, 150, 150),
}
WHITE = (255, 255, 255)

_WITH_STYLE = ("a {style} picture of a {subject}", "{subject}, {style} style", "a {style} drawing of a {subject}")
_PLAIN = ("a picture of a {subject}", "a drawing of a {subject}", "{subject}")


def words(subject: str) -> str:
    """The artwork's name as caption words: `hot-dog` -> `hot dog`."""
    return subject.replace("-", " ")


def caption(subject: str, style: str | None, background: str | None, template: int = 0) -> str:
    """A caption of pretraining. `subject` in words (a name or a class noun); `style` a style's id or None."""
    if style is None:
        text = _PLAIN[template % len(_PLAIN)].format(subject=subject)
    else:
        text = _WITH_STYLE[template % len(_WITH_STYLE)].format(subject=subject, style=STYLE_WORDS[style])
    return f"{text} on a {background} background" if background else text


def draw_caption(rng: np.random.Generator, subject: str, class_noun: str, style: str, background: str | None) -> str:
    """Captions as users write them: mostly subject and style, sometimes the class noun, sometimes no style."""
    name = class_noun if rng.random() < 0.08 else words(subject)
    shown_style = None if rng.random() < 0.12 else style
    return caption(name, shown_style, background, int(rng.integers(3)))


def composite_batch(
    rgba: NDArray[np.uint8],
    backgrounds: Sequence[tuple[int, int, int]],
    flips: Sequence[bool],
    shifts: NDArray[np.int64],
) -> Tensor:
    """(B, 64, 64, 4) uint8 -> (B, 3, 64, 64) float in [0, 1] over plain colours, mirrored and moved as told.

    `shifts` is (B, 2) pixels, at most `MARGIN` each way, so that nothing leaves the picture.
    """
    if np.abs(shifts).max(initial=0) > MARGIN:
        raise ValueError(f"shifts up to {MARGIN} pixels are safe, got {np.abs(shifts).max()}")
    out = np.empty((len(rgba), *rgba.shape[1:3], 3), np.float32)
    for i, picture in enumerate(rgba):
        moved = np.roll(picture[:, ::-1] if flips[i] else picture, tuple(shifts[i]), (0, 1)).astype(np.float32) / 255
        alpha = moved[..., 3:]
        out[i] = moved[..., :3] * alpha + np.asarray(backgrounds[i], np.float32) / 255 * (1 - alpha)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def plain_batch(rgba: NDArray[np.uint8], background: tuple[int, int, int] = WHITE) -> Tensor:
    """The pictures as they are, on one colour: (B, 64, 64, 4) uint8 -> (B, 3, 64, 64) in [0, 1]."""
    count = len(rgba)
    return composite_batch(rgba, [background] * count, [False] * count, np.zeros((count, 2), np.int64))
