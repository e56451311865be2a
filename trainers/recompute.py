"""Gradient checkpointing of any model: its blocks' activations are computed again instead of kept."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .rebinding import Rebinding
from .regions import Region, inside_region

_BLOCK = re.compile(r"Block")
_missing = object()


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model, in its order; none is inside another.

    A block is a module whose class has "Block" in its name (ResBlock, BasicTransformerBlock, JointBlock,
    DoubleStreamBlock…), which is how every model of the field calls them.
    """
    if _BLOCK.search(type(module).__name__) and not isinstance(module, nn.ModuleList | nn.Sequential):
        return [module]
    return [block for child in module.children() for block in blocks_of(child)]


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """``module.forward`` is another function for as long as the context lasts."""
    before = module.__dict__.get("forward", _missing)
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is _missing:
            module.__dict__.pop("forward", None)
        else:
            module.__dict__["forward"] = before


class Recomputed:
    """The blocks of a model while :func:`recomputed_blocks` holds.

    Attributes:
        count: how many blocks there are.
        chosen: indices of those that are recomputed; all of them until they have been measured.
        kept: bytes that each block's activations take when they are kept; 0 = not measured.
    """

    def __init__(self, count: int, share: float) -> None:
        self.count, self.share = count, share
        self.chosen = set(range(count)) if share > 0 else set()
        self.kept = [0] * count
        self._measuring = 0 < share < 1

    def measuring(self, index: int) -> bool:
        """Whether this call of a block is to be measured. The first block that comes again ends it for all."""
        if self._measuring and self.kept[index]:
            self._measuring = False
            largest = sorted(range(self.count), key=lambda block: (-self.kept[block], block))
            self.chosen = set(largest[: math.ceil(self.share * self.count)])
        return self._measuring


@contextmanager
def recomputed_blocks(module: nn.Module, *, random: bool = False, share: float = 1.0) -> Iterator[Recomputed]:
    """Recompute the activations of blocks in the backward pass, for as long as the context lasts.

    Without gradients (samples) nothing is changed. Gradients are the same to the bit, wherever the model's operations
    give the same result twice.

    Args:
        random: blocks draw random numbers (dropout), and must draw the same ones again.
        share: of all blocks, in [0, 1], rounded up. Those that would keep most memory come first; to know them, the
            first pass recomputes all and measures.
    """
    blocks = blocks_of(module)
    found = Recomputed(len(blocks), share)
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            stack.enter_context(replaced_forward(block, _recomputing(block.forward, index, found, random)))
        yield found


def _recomputing(forward: Callable[..., Any], index: int, found: Recomputed, random: bool) -> Callable[..., Any]:
    changes = True  # until a pass shows that it does not: the mode that looks for it costs 3% of a step

    def rebound(*args: Any, **kwargs: Any) -> Any:
        nonlocal changes
        if not changes:
            return forward(*args, **kwargs)
        # Here and not around the backward pass, which on a GPU runs this in a thread of its own.
        with Rebinding() as rebinding:
            result = forward(*args, **kwargs)
        changes = rebinding.count > 0
        return result

    def run(*args: Any, **kwargs: Any) -> Any:
        measured = found.measuring(index)
        if index not in found.chosen or inside_region() or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # The host hands one dict of options through all blocks and changes it on the way: the second time, each
        # block must see what it saw the first time.
        later = [_copied(value) for value in args], {key: _copied(value) for key, value in kwargs.items()}
        region = Region(random=random, measured=measured)
        result = region(rebound, rebound, args, kwargs, later)
        if measured:
            found.kept[index] = max(1, region.kept)
        return result

    return run


def _copied(value: Any) -> Any:
    return dict(value) if type(value) is dict else value
