"""Checkpoints of real size with random weights, for tests: written as fast as the disk takes them, in bf16.

A linear layer or a convolution has weights of N(0, 1/fan-in), so that signals neither vanish nor explode; norms have 1
and biases 0. Gigabytes of random numbers take minutes to draw, so one block of them is repeated: its length is prime,
so rows do not repeat, and each tensor begins at another place in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

BLOCK = 2_097_143  # a prime, the largest below 2²¹: 4 MiB in bf16
_STRIDE = 104_729


class _Noise:
    """One block of N(0, 1) in bf16, and copies of it with the standard deviations that were asked for."""

    def __init__(self, seed: int) -> None:
        self._drawn = torch.randn(BLOCK, generator=torch.Generator().manual_seed(seed))
        self._scaled: dict[int, memoryview] = {}

    def write(self, file: BinaryIO, count: int, fan_in: int, begin: int) -> None:
        """`count` numbers of N(0, 1/fan_in), from a place in the block on."""
        if fan_in not in self._scaled:
            self._scaled[fan_in] = raw((self._drawn * fan_in**-0.5).bfloat16())
        block, place = self._scaled[fan_in], begin % BLOCK
        while count:
            part = min(count, BLOCK - place)
            file.write(block[2 * place : 2 * (place + part)])
            count, place = count - part, 0


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a bf16 tensor."""
    return memoryview(tensor.contiguous().view(torch.int16).numpy()).cast("B")


def write(
    path: Path, shapes: Mapping[str, Sequence[int]], fixed: Mapping[str, Tensor] | None = None, seed: int = 0
) -> int:
    """Write a safetensors file of random weights; returns how many there are.

    Args:
        path: the file.
        shapes: name -> shape of each tensor.
        fixed: tensors that are not random; they replace one of `shapes`, or come beside them.
        seed: of the numbers.
    """
    fixed = {name: tensor.detach().cpu().bfloat16() for name, tensor in (fixed or {}).items()}
    sizes = {name: tuple(shape) for name, shape in shapes.items()} | {n: tuple(t.shape) for n, t in fixed.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in sizes.items():
        begin, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}  # type: ignore[dict-item]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    noise = _Noise(seed)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, (name, shape) in enumerate(sizes.items()):
            count = torch.Size(shape).numel()
            if name in fixed:
                file.write(raw(fixed[name]))
            elif len(shape) > 1:
                noise.write(file, count, torch.Size(shape[1:]).numel(), number * _STRIDE)
            else:
                file.write(raw(torch.full((count,), float(name.endswith(("weight", "scale"))), dtype=torch.bfloat16)))
    return end // 2
