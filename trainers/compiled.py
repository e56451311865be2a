"""torch.compile of a model's blocks, which says so and goes on without when it cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .recompute import blocks_of, replaced_forward

log = logging.getLogger(__name__)


class Compiled:
    """What :func:`compiled_blocks` does meanwhile.

    Attributes:
        count: blocks that are compiled, each when it is first called.
        failure: why all run uncompiled instead; "" = they do not.
    """

    def __init__(self, count: int) -> None:
        self.count, self.failure = count, ""


@contextmanager
def compiled_blocks(
    module: nn.Module, *, without: Collection[nn.Module] = (), backend: str = "inductor"
) -> Iterator[Compiled]:
    """Run each block's forward pass, and its backward pass, through ``torch.compile`` for as long as the context lasts.

    Results are the same up to rounding: fused kernels add in another order. The first call of each kind of block takes
    a while. If compiling fails, that is logged as a warning, kept in ``failure``, and all blocks run as they are.

    Enter it when adapters are in place and before blocks are wrapped in anything else.

    Args:
        without: blocks to leave alone, such as those whose weights come and go.
        backend: of ``torch.compile``.
    """
    blocks = [block for block in blocks_of(module) if block not in without]
    found = Compiled(len(blocks))
    with ExitStack() as stack:
        stack.enter_context(_room_for(len(blocks)))
        for block in blocks:
            stack.enter_context(replaced_forward(block, _guarded(block.forward, found, backend)))
        yield found


@contextmanager
def _room_for(blocks: int) -> Iterator[None]:
    """Blocks of one class share its code, which torch compiles eight times, whoever asks, and then no more, quietly."""
    import torch._dynamo.config as settings

    one = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"  # before torch 2.6
    names = [name for name in (one, f"accumulated_{one}") if hasattr(settings, name)]
    before = {name: getattr(settings, name) for name in names}
    for name, limit in before.items():
        setattr(settings, name, limit + 2 * blocks)
    try:
        yield
    finally:
        for name, limit in before.items():
            setattr(settings, name, limit)


def _guarded(forward: Callable[..., Any], found: Compiled, backend: str) -> Callable[..., Any]:
    fast: Callable[..., Any] | None = None
    works = False

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal fast, works
        if found.failure or not torch.is_grad_enabled():  # samples are other shapes, and not worth a compilation
            return forward(*args, **kwargs)
        try:
            if fast is None:
                fast = torch.compile(forward, backend=backend, dynamic=False)
            # Modes of Python functions (trainers/rebinding.py) cannot be traced, and a traced block needs none: it is
            # made a pure function first.
            with torch._C.DisableTorchFunction():
                result = fast(*args, **kwargs)
            works = True
            return result
        except Exception as why:
            if works or _not_of_the_compiler(why):
                raise
            found.failure = f"{type(why).__name__}: {' '.join(str(why).split())[:300]}"
            log.warning("torch.compile failed, so training goes on without it. %s", found.failure)
            return forward(*args, **kwargs)

    return run


def _not_of_the_compiler(error: Exception) -> bool:
    """Would the block have raised this by itself? Want of memory, and what hosts raise to cancel."""
    return isinstance(error, torch.OutOfMemoryError) or "Interrupt" in type(error).__name__
