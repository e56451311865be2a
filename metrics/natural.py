"""Statistics of natural pictures that NIQE and BRISQUE share.

Mean-subtracted contrast-normalised (MSCN) values of a photograph follow a generalised Gaussian, products of neighbours
an asymmetric one; distortion changes their shapes (Mittal et al. 2012, IEEE TIP 21, 12, equations 1 to 14).
Everything is float64: the shape is looked up by a ratio of moments.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .features import check_pictures

SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Neighbours to the right, below, and on both diagonals; a product does not say which of the two comes first."""

_GREY = (0.298936, 0.587043, 0.114021)
_HALF = (0.43359375, 0.11328125, -0.03515625, -0.01171875)  # Keys' cubic (a = −.5) at .25, .75, 1.25, 1.75, over 2
_SHAPES = torch.arange(200, 10001, dtype=torch.float64) / 1000  # where the papers' code looks: .2 to 10


def grey_levels(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 1, H, W), whole numbers of [0, 255], float64: grey as 8-bit files would hold it.

    Raises ValueError for pictures of another shape, dtype or range.
    """
    check_pictures(pictures)
    levels = (pictures.to(torch.float64) * 255).round()
    weight = torch.tensor(_GREY, dtype=torch.float64, device=pictures.device).view(1, 3, 1, 1)
    return (levels * weight).sum(dim=1, keepdim=True).round()


def mscn(levels: Tensor, replicate: bool) -> Tensor:
    """(I − μ) / (σ + 1) with local mean and deviation under a 7 × 7 Gaussian of σ 7/6; (N, 1, H, W).

    `replicate`: the border's values go on outside, as in NIQE; else zeros, as in BRISQUE.
    """
    place = torch.arange(-3, 4, dtype=torch.float64, device=levels.device)
    line = torch.exp(-place.square() / (2 * (7 / 6) ** 2))
    window = torch.outer(line, line)
    window = (window / window.sum()).view(1, 1, 7, 7)
    wide = functional.pad(levels, (3, 3, 3, 3), mode="replicate" if replicate else "constant")
    mean = functional.conv2d(wide, window)
    deviation = (functional.conv2d(wide.square(), window) - mean.square()).abs().sqrt()
    apart = levels - mean
    # In a flat area the sign of a rounding error would count as texture, and differ from machine to machine
    return torch.where(apart.abs() < 1e-9, 0.0, apart) / (deviation + 1)


def half_size(levels: Tensor) -> Tensor:
    """(N, 1, H, W) -> (N, 1, ⌈H/2⌉, ⌈W/2⌉): cubic with antialiasing, the picture mirrored at its borders, as MATLAB."""
    taps = torch.tensor([*reversed(_HALF), *_HALF], dtype=levels.dtype, device=levels.device)
    for dim in (2, 3):
        size = levels.shape[dim]
        first = 2 * torch.arange((size + 1) // 2, device=levels.device) - 3
        place = (first[:, None] + torch.arange(8, device=levels.device)) % (2 * size)
        place = torch.where(place < size, place, 2 * size - 1 - place)
        picked = levels.index_select(dim, place.flatten())
        picked = picked.reshape(*levels.shape[:dim], *place.shape, *levels.shape[dim + 1 :])
        levels = (picked * taps.view((8,) + (1,) * (3 - dim))).sum(dim + 1)
    return levels


def fit_gaussian(values: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised Gaussian of each row of (B, P): shape and variance, (B,). NaN where a row is all zero."""
    variance = values.square().mean(dim=1)
    ratio = values.abs().mean(dim=1).square() / variance
    return _shape(ratio), variance


def fit_asymmetric(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Asymmetric generalised Gaussian of each row of (B, P): shape, left and right deviation, (B,).

    NaN where a row has no value on one of the sides.
    """
    sides = []
    for side in (values < 0, values > 0):
        sides.append(((values * side).square().sum(dim=1) / side.sum(dim=1)).sqrt())
    left, right = sides
    gamma = left / right
    ratio = values.abs().mean(dim=1).square() / values.square().mean(dim=1)
    normed = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma.square() + 1).square()
    return _shape(normed), left, right


def gamma_ratio(above: Tensor, *below: Tensor) -> Tensor:
    """Γ(above) / ∏ √Γ(below)."""
    return (torch.lgamma(above) - sum((torch.lgamma(part) for part in below), torch.zeros_like(above)) / 2).exp()


def _shape(ratio: Tensor) -> Tensor:
    """α with Γ(2/α)² / (Γ(1/α) Γ(3/α)) nearest to the ratio (which rises with α), of the papers' grid."""
    shapes = _SHAPES.to(ratio.device)
    ratios = (2 * torch.lgamma(2 / shapes) - torch.lgamma(1 / shapes) - torch.lgamma(3 / shapes)).exp()
    above = torch.searchsorted(ratios, ratio.contiguous()).clamp(1, len(shapes) - 1)
    nearer = above - ((ratio - ratios[above - 1]) <= (ratios[above] - ratio)).long()
    return torch.where(ratio.isfinite(), shapes[nearer], torch.nan)
