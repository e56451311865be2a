"""The subject's region: what a mask marks, cut out, so that a score does not see what stands around the subject.

DreamBooth's figures compare whole pictures, in which the same sofa counts as the same dog. Here all outside the mask is
one grey, and the mask's box, made square with a margin, is cut out.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .preprocess import SMALLEST

GREY = 0.5
INSIDE = 0.5
"""Mask values from here on are the subject; there is no half outside."""


def subject_regions(pictures: Tensor, masks: Tensor, margin: float = 0.1, fill: float = GREY) -> list[Tensor | None]:
    """The region of each picture, (3, S, S) with its own S; None where the mask is empty.

    Args:
        pictures: (B, 3, H, W) in [0, 1].
        masks: (B, H, W), or (1, H, W) for all pictures; values from .5 on are the subject.
        margin: of the box's longer side, added on each side.
        fill: what the pixels outside of the mask become, and those beyond the picture's edge.

    Raises:
        ValueError: masks of another number or size, NaN in them, or a negative margin.
    """
    check_masks(pictures, masks)
    if not margin >= 0:
        raise ValueError(f"the margin must be 0 or more, got {margin}")
    masks = masks.to(pictures.device).expand(len(pictures), -1, -1) >= INSIDE
    return [_region(picture, mask, margin, fill) for picture, mask in zip(pictures, masks, strict=True)]


def check_masks(pictures: Tensor, masks: Tensor) -> None:
    """Raises ValueError unless masks (B or 1, H, W) fit the pictures (B, 3, H, W) and are finite."""
    if masks.ndim != 3 or masks.shape[0] not in (1, len(pictures)):
        raise ValueError(
            f"masks must be ({len(pictures)}, H, W), one a picture, or (1, H, W) for all; got {tuple(masks.shape)}"
        )
    if masks.shape[1:] != pictures.shape[2:]:
        raise ValueError(
            f"masks are {masks.shape[2]} × {masks.shape[1]}, pictures {pictures.shape[3]} × {pictures.shape[2]}: "
            "resize them to the same size (a picture without alpha gives an empty mask of 64 × 64)"
        )
    if not masks.isfinite().all():
        raise ValueError("a mask holds NaN or infinity; expected 0 (outside) to 1 (the subject)")


def _region(picture: Tensor, mask: Tensor, margin: float, fill: float) -> Tensor | None:
    rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
    if len(rows) == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    longer = max(bottom - top, right - left)
    side = max(longer + 2 * math.ceil(margin * longer), SMALLEST)
    above, before = (side - (bottom - top)) // 2, (side - (right - left)) // 2
    cut = torch.where(mask, picture, torch.full_like(picture, fill))[:, top:bottom, left:right]
    edges = (before, side - (right - left) - before, above, side - (bottom - top) - above)
    return functional.pad(cut, edges, value=fill)
