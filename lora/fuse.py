"""Rows of a layer: several LoRAs into one of the whole, and one into several. Both are exact.

ΔW of a fused matrix is its pieces' ΔW stacked: up is block-diagonal, down is concatenated, the ranks add up.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .mmdit_names import Piece

Factors = tuple[Tensor, Tensor, float]  # up, down, scale


def swaps(piece: Piece, up: Tensor, down: Tensor) -> bool:
    """Whether the halves of this piece change places between the two schemes."""
    return piece.swap == "always" or (piece.swap == "if 2h" and up.shape[0] == 2 * down[0].numel())


def swap_halves(up: Tensor) -> Tensor:
    """(2n, r): the second n rows before the first."""
    first, second = up.chunk(2, dim=0)
    return torch.cat([second, first])


def fuse(layer: str, parts: Sequence[tuple[Piece, Factors]]) -> Factors:
    """One LoRA of a whole layer out of LoRAs of its pieces. Raises ValueError where they do not fit together."""
    parts = sorted(parts, key=lambda part: part[0].start)
    (first, (up, down, scale)), total = parts[0], parts[0][0].total
    if total is None:
        if len(parts) > 1:
            raise ValueError(f"the file has {len(parts)} LoRAs for the layer {layer}; expected one")
        return (swap_halves(up) if swaps(first, up, down) else up), down, scale
    width = up.shape[0] // first.length
    rank = sum(int(factors[0].shape[1]) for _, factors in parts)
    scales = {factors[2] for _, factors in parts}
    common = scales.pop() if len(scales) == 1 else None  # else each is folded into its rows, in float32
    whole = torch.zeros(total * width, rank, dtype=up.dtype if common is not None else torch.float32, device=up.device)
    column = 0
    for piece, (piece_up, piece_down, piece_scale) in parts:
        if piece_up.shape[0] != piece.length * width or piece_down.shape[1:] != down.shape[1:]:
            raise ValueError(
                f"the pieces of the layer {layer} do not fit together: up {tuple(piece_up.shape)} and down "
                f"{tuple(piece_down.shape)} beside up {tuple(up.shape)} and down {tuple(down.shape)}"
            )
        rows = slice(piece.start * width, (piece.start + piece.length) * width)
        columns = slice(column, column + int(piece_up.shape[1]))
        whole[rows, columns] = piece_up.to(whole.dtype) * (1.0 if common is not None else piece_scale)
        column = columns.stop
    return whole, torch.cat([factors[1] for _, factors in parts]), 1.0 if common is None else common


def unfuse(layer: str, piece: Piece, factors: Factors) -> Factors:
    """The LoRA of one piece out of the whole layer's; columns that do not touch its rows are left out."""
    up, down, scale = factors
    if piece.total is None:
        return (swap_halves(up) if swaps(piece, up, down) else up), down, scale
    width = int(down[0].numel())
    if up.shape[0] != piece.total * width:  # Flux 2, and Lumina with fewer keys than queries
        raise ValueError(
            f"the layer {layer} is {up.shape[0]}×{width}, no {piece.total} squares: it has no name in the naming "
            "diffusers that the host would read; save with the naming kohya or comfy"
        )
    rows = up[piece.start * width : (piece.start + piece.length) * width]
    used = rows.abs().amax(dim=0) > 0
    if bool(used.any()) and not bool(used.all()):
        return rows[:, used], down[used], scale
    return rows, down, scale
