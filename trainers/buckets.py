"""Aspect-ratio buckets: which size a picture is trained at, and which part of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fit:
    """How a picture goes into its bucket.

    Attributes:
        size: (height, width) of the bucket.
        box: (left, top, right, bottom) of the part that is kept, in pixels of the picture, of the bucket's shape.
        crop: (top, left) of that part in the scaled picture, in the bucket's pixels, as SDXL is conditioned on.
    """

    size: tuple[int, int]
    box: tuple[float, float, float, float]
    crop: tuple[int, int]


def bucket(height: int, width: int, resolution: int, step: int = 8) -> tuple[int, int]:
    """The bucket (height, width) of a picture.

    Of all sizes that are multiples of ``step``, no larger than the picture on either side (nothing is scaled up) and
    of at most resolution² pixels, the widest for each height is looked at, and the one whose shape is nearest to the
    picture's is taken (nearest: the smaller ratio of the two aspect ratios); of equal ones the largest.

    Args:
        height: of the picture, in pixels.
        width: of the picture.
        resolution: √ of the target area.
        step: at least 1.

    Raises:
        ValueError: the picture or the target is smaller than one step.
    """
    area = resolution * resolution
    if step < 1 or resolution < step:
        raise ValueError(f"The resolution is {resolution} and sizes are multiples of {step}; use at least {step}.")
    if min(height, width) < step:
        raise ValueError(f"The picture is {width}×{height} pixels; each side needs at least {step}. Use a larger one.")
    best: tuple[float, int, tuple[int, int]] | None = None
    for tall in range(step, min(height, area // step) + 1, step):
        wide = min(width, area // tall) // step * step
        if wide == 0:
            break
        ratio = tall * width / (wide * height)
        candidate = (max(ratio, 1 / ratio), -tall * wide, (tall, wide))
        if best is None or candidate < best:
            best = candidate
    assert best is not None
    return best[2]


def fit(height: int, width: int, resolution: int, step: int = 8) -> Fit:
    """Scale the picture to cover its bucket and keep the middle. Arguments and errors as :func:`bucket`."""
    tall, wide = bucket(height, width, resolution, step)
    scale = max(tall / height, wide / width)
    kept_height, kept_width = min(height, tall / scale), min(width, wide / scale)
    top, left = (height - kept_height) / 2, (width - kept_width) / 2
    if scale == 1:  # whole pixels, so that nothing is interpolated
        top, left = float(int(top)), float(int(left))
    return Fit(
        size=(tall, wide),
        box=(left, top, left + kept_width, top + kept_height),
        crop=(round(top * scale), round(left * scale)),
    )
