"""Gradient checkpointing of any model: its blocks' activations are computed again instead of kept."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .rebinding import Rebinding

_BLOCK = re.compile(r"Block")


def _copied(value: Any) -> Any:
    return dict(value) if type(value) is dict else value


@contextmanager
def recomputed_blocks(module: nn.Module, *, random: bool = False) -> Iterator[int]:
    """Recompute the activations of each block in the backward pass, for as long as the context lasts.

    A block is a module whose class has "Block" in its name (ResBlock, BasicTransformerBlock, JointBlock,
    DoubleStreamBlock…), which is how every model of the field calls them. Inside a block no other is checkpointed.
    Without gradients (samples) nothing is changed.

    Args:
        random: blocks draw random numbers (dropout), and must draw the same ones again.

    Yields:
        How many blocks there are.
    """
    inside = False

    def recomputing(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            # The host hands one dict of options through all blocks and changes it on the way: the second time, each
            # block must see what it saw the first time.
            before = [_copied(value) for value in args], {key: _copied(value) for key, value in kwargs.items()}
            first = True

            def body() -> Any:
                nonlocal inside, first
                values, named = (args, kwargs) if first else before
                first = False
                outer, inside = inside, True
                try:
                    # Here and not around the backward pass, which on a GPU runs this in a thread of its own.
                    with Rebinding():
                        return forward(*values, **named)
                finally:
                    inside = outer

            try:
                return checkpoint(body, use_reentrant=False, preserve_rng_state=random)
            except BaseException as error:
                # torch's hooks stay on for as long as its frame lives, and the error's traceback keeps that: the next
                # forward pass (a cancelled step is finished) would be recorded with them.
                traceback.clear_frames(error.__traceback__)
                raise

        return run

    wrapped: list[tuple[nn.Module, Any]] = []
    missing = object()
    try:
        for block in module.modules():
            if _BLOCK.search(type(block).__name__) and not isinstance(block, nn.ModuleList | nn.Sequential):
                wrapped.append((block, block.__dict__.get("forward", missing)))
                block.__dict__["forward"] = recomputing(block.forward)
        yield len(wrapped)
    finally:
        for block, forward in wrapped:
            if forward is missing:
                block.__dict__.pop("forward", None)
            else:
                block.__dict__["forward"] = forward
