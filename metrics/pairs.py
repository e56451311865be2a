"""Pairs of pictures that should be the same: SSIM, PSNR, LPIPS. Of a subject in a new scene they say nothing.

SSIM (Wang et al. 2004, IEEE TIP 13, 4): a Gaussian window of 11 × 11 with σ 1.5, k₁ .01, k₂ .03, for each colour, with
the picture reflected at its edge; the mean over the picture. That is the variant of torchmetrics and kornia.
scikit-image leaves the edge out and divides by n − 1 (.7224 where this has .7262 on one pair); piq halves large
pictures first (.815).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .features import check_pictures

WINDOW, SIGMA = 11, 1.5
SSIM_MODEL = "11×11 Gaussian, σ 1.5, RGB, reflected edge"
PSNR_MODEL = "RGB, peak 1"
PSNR_MOST = 100.0
"""dB that no pair of 8-bit pictures reaches unless they are equal (one level in one of 10⁵ numbers)."""

Distance = Callable[[Tensor, Tensor], Tensor]
"""Two (B, 3, H, W) in [0, 1] -> (B,), e.g. ``lpips.Lpips``."""


def check_pairs(pictures: Tensor, targets: Tensor, least: int = 1) -> None:
    """Raises ValueError unless both are the same number of pictures of one size, with `least` pixels a side."""
    for one in (pictures, targets):
        check_pictures(one)
    if len(pictures) != len(targets):
        raise ValueError(
            f"there are {len(pictures)} pictures and {len(targets)} targets; expected one target a picture, in order"
        )
    if pictures.shape != targets.shape:
        sizes = [f"{one.shape[3]} × {one.shape[2]}" for one in (pictures, targets)]
        raise ValueError(f"pictures are {sizes[0]}, targets {sizes[1]}: resize them to the same size first")
    if min(pictures.shape[2:]) < least:
        raise ValueError(f"pictures of {pictures.shape[3]} × {pictures.shape[2]} are too small: {least} a side needed")


@torch.no_grad()
def ssim_per_pair(pictures: Tensor, targets: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1], twice -> (B,) in [−1, 1]; 1: equal.

    Raises:
        ValueError: pictures that do not pair, or are below 11 pixels a side.
    """
    from kornia.metrics import ssim as ssim_map

    check_pairs(pictures, targets, WINDOW)
    pairs = zip(pictures.float(), targets.float(), strict=True)  # one at a time stays in the cache
    found = [ssim_map(one[None], other[None], WINDOW).double().mean() for one, other in pairs]
    return torch.stack(found).clamp(-1, 1)


@torch.no_grad()
def psnr_per_pair(pictures: Tensor, targets: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1], twice -> (B,) dB, 10 log₁₀(1 / MSE); infinite for equal pictures."""
    check_pairs(pictures, targets)
    error = (pictures.double() - targets.double()).square().flatten(1).mean(dim=1)
    return -10 * error.log10()


@torch.no_grad()
def lpips_per_pair(pictures: Tensor, targets: Tensor, distance: Distance, batch: int = 8) -> Tensor:
    """(B, 3, H, W) in [0, 1], twice -> (B,) of about 0 (equal) to 1.

    Raises:
        ValueError: pictures that do not pair, or are below 32 pixels a side, which the network's pooling would eat.
    """
    check_pairs(pictures, targets, 32)
    starts = range(0, len(pictures), batch)
    return torch.cat([distance(pictures[i : i + batch], targets[i : i + batch]).double().cpu() for i in starts])


def ssim(pictures: Tensor, targets: Tensor) -> float:
    """Mean of :func:`ssim_per_pair`."""
    return float(ssim_per_pair(pictures, targets).mean())


def psnr(pictures: Tensor, targets: Tensor) -> float:
    """Mean of :func:`psnr_per_pair` over pairs that differ; infinite where none does."""
    found = psnr_per_pair(pictures, targets)
    finite = found[found.isfinite()]
    return float(finite.mean()) if len(finite) else math.inf


def lpips(pictures: Tensor, targets: Tensor, distance: Distance) -> float:
    """Mean of :func:`lpips_per_pair`."""
    return float(lpips_per_pair(pictures, targets, distance).mean())
