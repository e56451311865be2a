"""The largest singular values of a large ΔW, several times as fast as all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .randomness import generator
from .svd import Svd

STEPS = 4
_SMALL = 256
"""A side below which all singular values are as quick."""


def pays(shape: tuple[int, int], rank: int) -> bool:
    """Whether ``leading`` is worth it for `rank` of the values of a matrix of that shape."""
    return min(shape) >= _SMALL and rank * (STEPS + 1) * 2 <= min(shape)


def leading(matrix: Tensor | tuple[Tensor, Tensor], rank: int) -> Svd:
    """The first `rank` singular values and vectors, by block Krylov iteration (Musco & Musco 2015, arXiv 1504.05477,
    algorithm 2) with blocks of `rank` columns and ``STEPS`` steps, from a start that is always the same.

    matrix: (out, in), or (up, down) for up · down, which is then never made; float32. The error of the approximation is
    that of the best one times at most 1.002 on sums of 2 to 100 LoRAs and on what TIES and DARE make of them
    (benchmarks/merge.py measures it); Svd.values has `rank` entries, and what they hold of ‖ΔW‖² is exact.
    """
    up, down = matrix if isinstance(matrix, tuple) else (matrix, None)
    shape = int(up.shape[0]), int((up if down is None else down).shape[1])
    if shape[0] > shape[1]:  # the long side is only multiplied with, and never made orthogonal
        return leading(up.T if down is None else (down.T, up.T), rank).transposed()

    def forward(columns: Tensor) -> Tensor:
        return up @ columns if down is None else up @ (down @ columns)

    def backward(columns: Tensor) -> Tensor:
        return up.T @ columns if down is None else down.T @ (up.T @ columns)

    start = torch.randn(shape[1], rank, generator=generator(0, "krylov", *shape, rank), dtype=up.dtype)
    blocks = [torch.linalg.qr(forward(start)).Q]
    for _ in range(STEPS):
        blocks.append(torch.linalg.qr(forward(backward(blocks[-1]))).Q)
    basis = torch.linalg.qr(torch.cat(blocks, 1)).Q
    inside = backward(basis).T
    squares, turns = torch.linalg.eigh((inside @ inside.T).to(torch.float64))
    values = squares.flip(0)[:rank].clamp_min(0).sqrt()
    values = torch.where(values > values[:1] * torch.finfo(up.dtype).eps * min(shape) ** 0.5, values, 0.0)
    turns = turns.flip(1)[:, :rank].to(up.dtype)

    def factors(cut: int) -> tuple[Tensor, Tensor]:
        root = values[:cut].sqrt().to(up.dtype)
        turn = turns[:, :cut]
        return basis @ (turn * root), (turn / torch.where(root > 0, root, torch.inf)).T @ inside

    return Svd(shape, values, factors)
