"""Magnitude pruning: the largest entries stay (TRIM of TIES; Yadav et al. 2023, arXiv 2306.01708, §4.1, step 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

_PIECE = 1 << 18  # numbers


def check_share(name: str, value: float) -> None:
    """Raise ValueError where a share is not in (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}; expected a share above 0, up to 1 (everything)")


def trim(delta: Tensor, density: float) -> Tensor:
    """ΔW with its ⌊density · numel⌋ entries of the largest magnitude, and 0 for the rest.

    delta: any shape. density: (0, 1], the paper's k as a share. Of equal magnitudes the first stay.
    peft's and mergekit's pruning keep the same number; mergekit refuses to keep none.
    """
    check_share("density", density)
    if density == 1:
        return delta
    count = int(density * delta.numel())
    if count == 0:
        return torch.zeros_like(delta)
    flat = delta.reshape(-1)
    out, least, over = torch.empty_like(flat), _kth_largest(flat, count), -count
    for piece, new in pieces(flat, out):
        kept = piece.abs() >= least
        over += int(kept.count_nonzero())
        torch.mul(piece, kept, out=new)
    if over > 0:
        out[(flat.abs() == least).nonzero().flatten()[-over:]] = 0
    return out.reshape(delta.shape)


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same entries of each, few at a time: what is made of them stays in the processor's cache, and does not ask
    the system for new pages, which takes longer than the arithmetic. (n,) or contiguous, so that they are views."""
    return zip(*(torch.split(tensor.view(-1), _PIECE) for tensor in tensors), strict=True)


def _kth_largest(flat: Tensor, k: int) -> Tensor:
    """The k-th largest magnitude of (n,) numbers, ten times as fast as topk; ``magnitude_at`` says what bits tell."""
    if flat.dtype != torch.float32:
        return flat.abs().topk(k).values[-1]
    counts = torch.zeros(1 << 15, dtype=torch.int64)
    for (piece,) in pieces(flat):
        counts += torch.bincount(piece.abs().view(torch.int32) >> 16, minlength=1 << 15)
    high, above = _from_the_top(counts, k)
    near = torch.cat([m[(m.view(torch.int32) >> 16) == high] for (piece,) in pieces(flat) for m in (piece.abs(),)])
    return near.kthvalue(len(near) - (k - above) + 1).values


def magnitude_prune(deltas: Iterable[Tensor], density: float) -> Tensor:
    """Σᵢ trim(ΔWᵢ): task arithmetic of pruned differences, without an election of signs.

    deltas: n times (…), each already times its weight, which does not change what is kept. As peft's
    ``magnitude_prune``.
    """
    return total(trim(delta, density) for delta in deltas)


def total(deltas: Iterable[Tensor]) -> Tensor:
    """Their sum, of which one at a time is held. There is at least one."""
    each = iter(deltas)
    out = next(each).clone()
    for delta in each:
        out += delta
    return out


def magnitude_at(deltas: Callable[[], Iterable[Tensor]], density: float) -> float:
    """The magnitude of the ⌊density · n⌋-th largest of all entries of all layers; 0 where density is 1 or none stays.

    deltas: gives all layers, float32, the same each time; it is called twice, and nothing of them is kept: a
    non-negative float32 sorts as its bits do, so the upper 16 bits are counted first, and then the lower 16 of those
    that share the upper ones sought.
    """
    check_share("density", density)
    upper = torch.zeros(1 << 16, dtype=torch.int64)
    for delta in deltas():
        upper += torch.bincount(_bits(delta) >> 16, minlength=1 << 16)
    wanted = int(density * int(upper.sum()))
    if density == 1 or wanted == 0:
        return 0.0 if density == 1 else float("inf")
    high, above = _from_the_top(upper, wanted)
    lower = torch.zeros(1 << 16, dtype=torch.int64)
    for delta in deltas():
        bits = _bits(delta)
        lower += torch.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, _ = _from_the_top(lower, wanted - above)
    return float(torch.tensor(high << 16 | low, dtype=torch.int32).view(torch.float32))


def _bits(delta: Tensor) -> Tensor:
    return delta.abs().flatten().contiguous().view(torch.int32).to(torch.int64)


def _from_the_top(counts: Tensor, wanted: int) -> tuple[int, int]:
    """The bin in which the wanted-th largest lies, and how many lie in the bins above it."""
    sums = counts.flip(0).cumsum(0)
    place = int((sums < wanted).sum())
    return len(counts) - 1 - place, int(sums[place - 1]) if place else 0
