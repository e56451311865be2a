"""The object blurred away, so that a subject can be painted where it was (Image-Alchemy, appendix A.1).

Gaussian: inside of the mask the picture is blurred. Exponential decay: the blur goes on outside of it, ever weaker.

    w(x) = 1 inside, e^{−λ·d(x)/s} outside      out = w·blur(picture) + (1 − w)·picture

The paper writes G'(x, y) = G(x, y)·e^{−λ·d} without the second term: where the weight falls the picture then goes
black, and with d in pixels and λ = 5 the weight is .0067 one pixel off, a hard edge. So s is a choice here (by default
the kernel's radius), the rest is filled up with the picture, and a constant picture stays constant. The formula as it
stands is the mode `literal formula`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .masks import distance, extent, feather, grow

GAUSSIAN, DECAY, LITERAL = MODES = ("gaussian", "exponential decay", "literal formula")
RADIUS, DIAGONAL, PIXELS = SCALES = ("kernel radius", "image diagonal", "pixels")
LEAST = 1 / 512
"""Weights below are 0: less than half a step of an 8-bit picture, and the picture stays as it is, bit for bit."""
REFERENCE = 1024
"""The longer side for which the paper's kernel and σ are meant."""


@dataclass(frozen=True)
class Blur:
    """How to blur.

    Attributes:
        mode: one of :data:`MODES`.
        kernel: its width in pixels, odd; at σ = 100 its edge is .755 of its centre, so it is nearly a box.
        sigma: of the Gaussian, in pixels.
        decay: λ; 0: the blur goes on over the whole picture.
        scale: one of :data:`SCALES`: what d is divided by, half the kernel, the picture's diagonal, or 1.
        grow: pixels that the mask is grown by first; fewer than 0: shrunk.
        feather: pixels of its soft edge.
    """

    mode: str = DECAY
    kernel: int = 151
    sigma: float = 100.0
    decay: float = 5.0
    scale: str = RADIUS
    grow: float = 0.0
    feather: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.scale not in SCALES:
            raise ValueError(f"blur by one of {', '.join(MODES)}, scaled by one of {', '.join(SCALES)}; got {self}")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"a kernel must be odd, so that it has a middle; got {self.kernel}")
        if not (self.sigma > 0 and self.decay >= 0 and self.feather >= 0):
            raise ValueError(f"σ must be above 0, λ and feather at least 0; got {self}")

    def for_size(self, height: int, width: int) -> Blur:
        """Kernel, σ, grow and feather as large, in the picture, as they are in one of 1024 pixels."""
        share = max(height, width) / REFERENCE
        kernel = max(3, 2 * round((self.kernel * share - 1) / 2) + 1)
        return replace(
            self, kernel=kernel, sigma=self.sigma * share, grow=self.grow * share, feather=self.feather * share
        )


def gaussian(picture: Tensor, kernel: int, sigma: float) -> Tensor:
    """(C, H, W) -> (C, H, W): separable Gaussian of `kernel` pixels, the picture continued by its edge; float32."""
    from kornia.filters import gaussian_blur2d

    blurred: Tensor = gaussian_blur2d(picture[None].float(), (kernel, kernel), (sigma, sigma), "replicate")
    return blurred[0]


def weight_map(mask: Tensor, blur: Blur) -> Tensor:
    """How much of the blur each place gets: (H, W) in [0, 1] -> (H, W), 1 inside; of an empty mask 0 everywhere.

    Only what the weights can reach is computed: beyond s·ln(512)/λ of the mask they are 0.
    """
    height, width = mask.shape
    weight = torch.zeros(height, width)
    found = extent(mask)
    if found is None:
        return weight
    scale = max({RADIUS: (blur.kernel - 1) / 2, DIAGONAL: math.hypot(height, width), PIXELS: 1.0}[blur.scale], 1e-6)
    reach = 0.0 if blur.mode == GAUSSIAN else scale * -math.log(LEAST) / blur.decay if blur.decay else math.inf
    # feather cuts its Gaussian at 1.5 of its width; two more pixels show it and grow that the mask ends
    margin = math.ceil(min(max(blur.grow, 0) + 1.5 * blur.feather + reach, height + width)) + 2
    rows = slice(max(0, found[0] - margin), min(height, found[2] + margin))
    columns = slice(max(0, found[1] - margin), min(width, found[3] + margin))
    inside = feather(grow(mask[rows, columns].float(), blur.grow), blur.feather)
    if blur.mode != GAUSSIAN:
        away = distance(inside)
        inside = torch.maximum(inside, torch.where(away.isinf(), 0.0, torch.exp(-blur.decay * away / scale)))
    weight[rows, columns] = torch.where(inside < LEAST, 0.0, inside)
    return weight


def blur_subject(picture: Tensor, mask: Tensor, blur: Blur) -> tuple[Tensor, Tensor]:
    """Blur what the mask shows.

    Only the weights' surroundings are computed, so that a small object in a large picture is quick.

    Args:
        picture: (C, H, W) in [0, 1], any float dtype; a fourth channel (alpha) stays as it is.
        mask: (H, W) in [0, 1].

    Returns:
        (the picture, of the same dtype; the weights (H, W)). Where a weight is 0 the picture is unchanged bit for bit.

    Raises:
        ValueError: the sizes differ.
    """
    if picture.ndim != 3 or picture.shape[1:] != mask.shape:
        raise ValueError(f"a picture (C, H, W) needs a mask (H, W); got {tuple(picture.shape)}, {tuple(mask.shape)}")
    weight = weight_map(mask, blur)
    found = extent(weight)
    if found is None:
        return picture, weight
    top, left, bottom, right = found
    reach = blur.kernel // 2
    height, width = mask.shape
    around = (
        slice(max(0, top - reach), min(height, bottom + reach)),
        slice(max(0, left - reach), min(width, right + reach)),
    )
    inner = (
        slice(top - around[0].start, bottom - around[0].start),
        slice(left - around[1].start, right - around[1].start),
    )
    colours = picture[:3]
    blurred = gaussian(colours[:, around[0], around[1]], blur.kernel, blur.sigma)[:, inner[0], inner[1]]
    part, share = colours[:, top:bottom, left:right], weight[top:bottom, left:right]
    mixed = share * blurred if blur.mode == LITERAL else share * blurred + (1 - share) * part.float()
    out = picture.clone()
    out[:3, top:bottom, left:right] = torch.where(share > 0, mixed.to(picture.dtype), part)
    return out, weight
