"""Files of a training folder: pictures, masks and captions. Whatever cannot be read is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

ALPHAS = ("composite", "mask")
"""What the transparency of a picture means: it is laid on white, or the loss counts where it is opaque."""

MOST_PIXELS = 180_000_000
"""Of a picture file. Larger ones are refused before they are decoded: a few bytes can claim to be any size."""

_LONGEST_CAPTION = 100_000  # bytes
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""What a picture may be, whatever it is called. Of Pillow's other formats one (EPS) runs a program to draw it."""

_ASPECT = 0.02
"""Mask and picture may differ so much in their aspect ratio: a mask made at another size was rounded."""


def check_file(path: Path) -> None:
    """Whether a file of a training folder may be read.

    Raises:
        ValueError: it is, links followed, a folder, a pipe, a device, or nothing.
    """
    try:
        regular = path.resolve(strict=True).is_file()
    except (OSError, RuntimeError) as why:  # RuntimeError: links in a circle, in older Pythons
        raise ValueError(f"{path.name} is a link to nowhere. Take it out of {path.parent}.") from why
    if not regular:
        raise ValueError(f"{path.name} is no file. Take it out of {path.parent}, or give it another name.")


def read_picture(path: Path, alpha: str = "composite") -> tuple[Image.Image, np.ndarray | None]:
    """A picture file as upright RGB: EXIF orientation applied, the first frame.

    Args:
        path: of the file.
        alpha: one of :data:`ALPHAS`. With ``mask`` the colours stay as they are stored, those under transparent parts
            too, so that what is half masked is not bleached.

    Returns:
        The picture, and with ``mask`` its opacity (H, W) float32 in [0, 1]; None where there is none, or all is opaque.

    Raises:
        ValueError: names the file.
    """
    image = _upright(path)
    if image.mode != "RGBA":
        return image, None
    if alpha == "composite":
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"), None
    opacity = np.asarray(image.getchannel("A"), dtype=np.float32) / 255
    return image.convert("RGB"), None if opacity.min() == 1 else opacity


def read_mask(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A mask file, white where the loss counts, at the size (width, height) of its picture: (H, W) float32 in [0, 1].

    Raises:
        ValueError: names the file; not readable, or of another aspect ratio than the picture.
    """
    image = _upright(path)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    grey = image.convert("L")
    if abs(grey.width * size[1] / (grey.height * size[0]) - 1) > _ASPECT:
        raise ValueError(
            f"The mask {path.name} is {grey.width}×{grey.height} and its picture {size[0]}×{size[1]}. "
            f"Make it of the picture's shape."
        )
    if grey.size != size:
        grey = grey.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(grey, dtype=np.float32) / 255


def read_caption(path: Path) -> str:
    """A caption file in one line.

    Raises:
        ValueError: names the file; not UTF-8 text, or longer than any caption.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_CAPTION + 1)
        text = content.decode("utf-8-sig")
        if len(content) > _LONGEST_CAPTION:
            raise ValueError(f"it is longer than {_LONGEST_CAPTION} bytes")
        if "\0" in text:
            raise ValueError("it is no text")
        return " ".join(text.split())
    except (OSError, ValueError) as why:
        raise ValueError(f"The caption {path.name} cannot be read ({why}). Save it as UTF-8 text.") from why


def _upright(path: Path) -> Image.Image:
    """RGBA where the file has transparency, otherwise RGB."""
    try:
        with Image.open(path, formats=_formats()) as file:
            if file.width * file.height > MOST_PIXELS:
                raise ValueError(f"it claims to be {file.width}×{file.height}; at most {MOST_PIXELS:,} pixels are read")
            upright = ImageOps.exif_transpose(file)
            if upright.mode.startswith(("I", "F")):
                # 16 bits a channel: PIL's own conversion would clip all above 255 to white.
                values: np.ndarray = np.nan_to_num(np.asarray(upright, dtype=np.float32))
                values = values / 257 if values.max() > 255 else values
                upright = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
            transparent = upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info
            return upright.convert("RGBA" if transparent else "RGB")
    except Exception as why:  # Pillow raises what the broken file happens to cause
        raise ValueError(
            f"{path.name} cannot be read as a picture ({str(why)[:200]}). Take it out of {path.parent}, or save it "
            "anew."
        ) from why


def _formats() -> list[str]:
    """Those of _FORMATS that this Pillow has."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]
