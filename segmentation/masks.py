"""Masks: fitting them to pictures, growing, feathering, distances. A mask is (H, W) or (B, H, W), float in [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


def masks_for(masks: Tensor, count: int, height: int, width: int) -> Tensor:
    """One mask for each of `count` pictures, at their size.

    Args:
        masks: (H, W), (M, H, W) or (M, 1, H, W); of another size they are resized bilinearly. One serves all pictures.

    Returns:
        (count, height, width), float32 on the CPU.

    Raises:
        ValueError: there are neither one nor `count` masks, or a value is outside of [0, 1].
    """
    found = masks.detach().to("cpu", torch.float32)
    found = found[None] if found.ndim == 2 else found[:, 0] if found.ndim == 4 and found.shape[1] == 1 else found
    if found.ndim != 3 or 0 in found.shape:
        raise ValueError(f"a mask must be (H, W) or (masks, H, W) with at least one pixel, got {tuple(masks.shape)}")
    if len(found) not in (1, count):
        raise ValueError(f"{len(found)} masks for {count} pictures: give one mask for all, or one for each")
    low, high = (float(bound) for bound in found.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"a mask's values must be in [0, 1]; these are in [{low:g}, {high:g}]")
    if found.shape[1:] != (height, width):
        found = functional.interpolate(found[:, None], size=(height, width), mode="bilinear", antialias=True)[:, 0]
        found = found.clamp(0, 1)
    return found.expand(count, height, width)


def distance(mask: Tensor) -> Tensor:
    """Pixels from each place to the nearest one of the mask (above ½), exact Euclidean; infinite where there is none.

    (H, W) -> (H, W). Oracle: brute force; scipy.ndimage.distance_transform_edt does it in linear time.
    """
    from scipy import ndimage  # here, because it takes a moment

    inside = (mask > 0.5).numpy()
    if not inside.any():
        return torch.full(mask.shape, torch.inf)
    return torch.from_numpy(ndimage.distance_transform_edt(~inside).astype(np.float32))


def grow(mask: Tensor, pixels: float) -> Tensor:
    """The mask and all within `pixels` of it (above ½); fewer than 0: what remains when all else grows by as much.

    (H, W) -> (H, W). `grow(m, 0)` is `m`; `grow(1 − m, −p)` is `1 − grow(m, p)`.
    """
    if pixels == 0:
        return mask
    if pixels < 0:
        return 1 - grow(1 - mask, -pixels)
    return torch.maximum(mask, (distance(mask) <= pixels).to(mask.dtype))


def feather(mask: Tensor, pixels: float) -> Tensor:
    """A soft edge about `pixels` wide: a Gaussian of σ = pixels / 2, the mask continued by its edge. (H, W) -> (H, W).

    An edge stays where it was (½); what should be covered whole must be grown first.
    """
    if pixels <= 0:
        return mask
    from scipy import ndimage

    soft = ndimage.gaussian_filter(mask.numpy().astype(np.float32), pixels / 2, mode="nearest", truncate=3.0)
    return torch.from_numpy(soft).clamp(0, 1)


def extent(mask: Tensor) -> tuple[int, int, int, int] | None:
    """(top, left, bottom, right) around all that is above 0, the latter two excluded; None where nothing is."""
    rows, columns = (mask > 0).any(1).nonzero().flatten(), (mask > 0).any(0).nonzero().flatten()
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
