"""The loss by noise level: what is learnt at low σ (detail) and at high σ (layout) is not the same."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .denoiser import Parameterisation
from .objectives import x0_weight

BANDS = ("low", "middle", "high")


def band_edges(sigmas: Tensor) -> Tensor:
    """(2,) the σ's that part the trained ones, (N,) ascending, into thirds of equal count."""
    return sigmas[[len(sigmas) // 3, 2 * len(sigmas) // 3]].clone()


@torch.no_grad()
def band_sums(
    predicted: Tensor, target: Tensor, sigma: Tensor, parameterisation: Parameterisation, edges: Tensor
) -> Tensor:
    """Squared error of the network's own prediction, without masks and weights, so that runs can be compared.

    Args:
        predicted, target: (B, C, …) x̂₀ and what it is compared with.
        sigma: (B,).
        edges: (2,) of :func:`band_edges`; a σ on an edge is of the band above it.

    Returns:
        (2, 3): sum of the pictures' means, and count of the pictures, in each of :data:`BANDS`. No waiting for the
        device, no order that a GPU could change.
    """
    each = (predicted - target).square().flatten(1).mean(1) * x0_weight(sigma, parameterisation)
    of_band = torch.bucketize(sigma, edges, right=True).unsqueeze(1) == torch.arange(len(BANDS), device=sigma.device)
    return torch.stack([torch.where(of_band, each.unsqueeze(1), 0.0).sum(0), of_band.to(each.dtype).sum(0)])


def band_means(values: Mapping[str, float]) -> dict[str, float]:
    """``loss_low_sigma`` … from what :func:`named_sums` named, once read; bands without a picture are left out."""
    return {
        f"loss_{band}_sigma": values[f"{band}.sum"] / values[f"{band}.count"]
        for band in BANDS
        if values.get(f"{band}.count", 0) > 0
    }


def named_sums(sums: Tensor) -> dict[str, Tensor]:
    """The entries of :func:`band_sums` under names for :func:`band_means`."""
    return {
        f"{band}.{what}": sums[row, place]
        for row, what in enumerate(("sum", "count"))
        for place, band in enumerate(BANDS)
    }
