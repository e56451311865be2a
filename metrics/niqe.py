"""NIQE: how far a picture's statistics are from those of good photographs; lower is better.

Mittal, Soundararajan and Bovik 2013, IEEE Signal Processing Letters 20, 3: 36 features of each 96 × 96 block at two
scales, a Gaussian over the blocks, and its distance (equation 10) to a Gaussian made from pristine photographs. It
knows neither what was asked for nor the subject; blur and noise raise it, and so does a drawing: it is no photograph.

The pristine Gaussian in weights/ is the authors', from BasicSR 1.4.2 (Apache-2.0): see weights/README.md. Variants of
NIQE differ by a factor of two (MATLAB's own has another Gaussian). This one follows the authors' release, which takes
grey levels; BasicSR and others take Y of BT.601 in studio range and differ from it by up to 4%.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from .natural import SHIFTS, fit_asymmetric, gamma_ratio, grey_levels, half_size, mscn

BLOCK = 96
FILE = Path(__file__).parent / "weights" / "niqe_pristine.safetensors"


@dataclass(frozen=True)
class Pristine:
    """The Gaussian of good photographs: `mean` (36,), `covariance` (36, 36), float64."""

    mean: Tensor
    covariance: Tensor


@lru_cache(maxsize=1)
def pristine() -> Pristine:
    """The authors' Gaussian, shipped with the pack."""
    state = load_file(FILE)
    return Pristine(state["mean"], state["covariance"])


@torch.no_grad()
def niqe(pictures: Tensor, model: Pristine | None = None) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N,) float64 on the CPU; about 3 for a photograph, more is worse.

    NaN for a picture in which fewer than two blocks have any texture. What is left of the last full block is cut off.

    Raises:
        ValueError: another shape, dtype or range, or fewer than two blocks.
    """
    model = model or pristine()
    levels = grey_levels(pictures).cpu()
    high, wide = levels.shape[2] // BLOCK, levels.shape[3] // BLOCK
    if high * wide < 2:
        raise ValueError(
            f"NIQE needs two blocks of {BLOCK} × {BLOCK} pixels or more, got pictures of {levels.shape[3]} × "
            f"{levels.shape[2]}; enlarging them would change what is measured"
        )
    return torch.stack([_distance(block_features(one[None]), model) for one in levels])


def mean_niqe(pictures: Tensor) -> float:
    """Mean NIQE of (N, 3, H, W), over the pictures that have one; NaN where none has."""
    return float(niqe(pictures).nanmean())


def block_features(levels: Tensor) -> Tensor:
    """(1, 1, H, W) of [0, 255] -> (blocks, 36), 18 of each scale; NaN of a block without texture."""
    high, wide = levels.shape[2] // BLOCK, levels.shape[3] // BLOCK
    levels = levels[..., : high * BLOCK, : wide * BLOCK]
    scales = []
    for side in (BLOCK, BLOCK // 2):
        seen = mscn(levels, replicate=True)[0, 0]
        blocks = seen.unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)
        scales.append(_features(blocks))
        levels = half_size(levels)
    return torch.cat(scales, dim=1)


def _features(blocks: Tensor) -> Tensor:
    shape, left, right = _betas(blocks)
    found = [shape, (left + right) / 2]
    for shift in SHIFTS:
        shape, left, right = _betas(blocks * blocks.roll(shift, (1, 2)))
        mean = (right - left) * gamma_ratio(2 / shape, 1 / shape, 1 / shape)
        found += [shape, mean, left, right]
    return torch.stack(found, dim=1)


def _betas(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape, and the scales β of both sides: the deviations times √(Γ(1/α) / Γ(3/α))."""
    shape, left, right = fit_asymmetric(blocks.flatten(1))
    scale = ((torch.lgamma(1 / shape) - torch.lgamma(3 / shape)) / 2).exp()
    return shape, left * scale, right * scale


def _distance(features: Tensor, model: Pristine) -> Tensor:
    whole = features[~features.isnan().any(dim=1)]
    if len(whole) < 2:
        return torch.tensor(torch.nan, dtype=torch.float64)
    apart = model.mean - features.nanmean(dim=0)
    inverse = torch.linalg.pinv((model.covariance + whole.T.cov()) / 2)
    distance: Tensor = (apart @ inverse @ apart).clamp_min(0).sqrt()
    return distance
