"""The singular value decomposition of a ΔW from what a file holds of it, without ΔW where that is smaller.

Everything is float64: a sum of squares over a few hundred singular values is then right to 15 digits, and the
matrices are small. Values below what rounding leaves are set to 0, so that counting them gives the rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Svd:
    """Of a ΔW (out, in).

    shape: (out, in). values: (k,) singular values ≥ 0, descending, float64. factors(rank): up (out, rank) and down
    (rank, in), float64, of the best approximation of that rank. Its error is the tail: ‖ΔW − up·down‖²_F =
    Σ_{i>rank} s_i² (Eckart & Young 1936). √s goes into each factor, so that both have the same range and half
    precision rounds neither to 0.
    """

    shape: tuple[int, int]
    values: Tensor
    factors: Callable[[int], tuple[Tensor, Tensor]]

    def transposed(self) -> Svd:
        """Of ΔWᵀ."""

        def factors(rank: int) -> tuple[Tensor, Tensor]:
            up, down = self.factors(rank)
            return down.T, up.T

        return Svd(self.shape[::-1], self.values, factors)


def of_pair(up: Tensor, down: Tensor, scale: float) -> Svd:
    """Of scale · up · down by QR of both factors and the SVD of a small matrix: O((out + in) r²).

    up: (out, r, …), down: (r, in, …), flattened to matrices. With up = Q_u R_u, downᵀ = Q_d R_d and
    scale · R_u R_dᵀ = U S Vᵀ, the vectors times their values are Q_u U S = scale · up R_dᵀ V and S Vᵀ Q_dᵀ =
    scale · Uᵀ R_u down: neither Q is ever made, which halves the time.
    """
    up, down = matrix(up), matrix(down)
    left, right = torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.T, mode="r").R
    u, s, v = torch.linalg.svd(scale * left @ right.T, full_matrices=False)
    shape = (up.shape[0], down.shape[1])
    s = _without_noise(s, max(shape) * EPS)

    def factors(rank: int) -> tuple[Tensor, Tensor]:
        inverse_root = torch.where(s > 0, s, torch.inf)[:rank].rsqrt()
        return (
            up @ (right.T @ v[:rank].T * (scale * inverse_root)),
            (u[:, :rank] * (scale * inverse_root)).T @ left @ down,
        )

    return Svd(shape, s, factors)


def of_kronecker(one: Tensor, other: Tensor, scale: float) -> Svd:
    """Of scale · (one ⊗ other): its singular values are all products, its vectors the Kronecker products of theirs.

    one: (a, b), other: (c, d, …), flattened to a matrix; ΔW is (a·c, b·d).
    """
    u1, s1, v1 = torch.linalg.svd(matrix(one), full_matrices=False)
    u2, s2, v2 = torch.linalg.svd(matrix(other), full_matrices=False)
    values, order = (abs(scale) * torch.outer(s1, s2)).flatten().sort(descending=True)
    shape = (u1.shape[0] * u2.shape[0], v1.shape[1] * v2.shape[1])
    values = _without_noise(values, max(shape) * EPS)

    def factors(rank: int) -> tuple[Tensor, Tensor]:
        first, second, root = order[:rank] // len(s2), order[:rank] % len(s2), values[:rank].sqrt()
        left = torch.einsum("ak,ck->ack", u1[:, first], u2[:, second]).flatten(0, 1)
        right = torch.einsum("kb,kd->kbd", v1[first], v2[second]).flatten(1)
        return left * (-root if scale < 0 else root), root[:, None] * right

    return Svd(shape, values, factors)


def of_matrix(delta: Tensor) -> Svd:
    """Of ΔW itself, (out, in, …), by the eigenvectors of the smaller of ΔWΔWᵀ and ΔWᵀΔW.

    Several times as fast as an SVD. The other side is a product with ΔW, so that the approximation is an exact
    projection of ΔW; values below about 10⁻⁷ of the largest are lost.
    """
    delta = matrix(delta)
    if delta.shape[0] > delta.shape[1]:
        return of_matrix(delta.T).transposed()
    squares, left = torch.linalg.eigh(delta @ delta.T)
    squares, left = squares.flip(0), left.flip(1)
    values = _without_noise(squares, len(squares) * EPS).sqrt()

    def factors(rank: int) -> tuple[Tensor, Tensor]:
        root = values[:rank].sqrt()
        return left[:, :rank] * root, (left[:, :rank] / torch.where(root > 0, root, torch.inf)).T @ delta

    return Svd((delta.shape[0], delta.shape[1]), values, factors)


def matrix(tensor: Tensor) -> Tensor:
    """(out, everything else), float64; on the CPU where the device has none."""
    tensor = tensor.detach()
    return (tensor.cpu() if tensor.device.type == "mps" else tensor).to(torch.float64).flatten(1)


def _without_noise(values: Tensor, share: float) -> Tensor:
    """Values (or squares) with what is below that share of the largest set to 0."""
    return torch.where(values > share * values[:1].clamp_min(0), values, 0.0)
