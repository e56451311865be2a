"""A piece of the forward pass that keeps nothing for the backward pass, and runs again when that asks for something."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

_here = threading.local()


class _Enough(BaseException):
    """Everything that the backward pass needs is there; what comes after it need not be computed again."""


def inside_region() -> bool:
    """Whether a region runs on this thread: what it keeps is dropped, so nothing in it needs a region of its own."""
    return bool(getattr(_here, "inside", False))


class Region:
    """One call, whose saved tensors are dropped and made again (Chen et al. 2016, arXiv 1604.06174).

    As ``torch.utils.checkpoint`` without reentrance does it, with less to do for each tensor: no holder, no check of
    shapes, no autocast state (hosts cast by themselves). Like there, the second pass ends at the last tensor that is
    needed, which an operation hands over *before* it computes: a block's last layer is not computed twice.

    Attributes:
        kept: bytes that would have been kept, inputs and parameters not counted. Only when measured.
    """

    def __init__(self, *, random: bool = False, measured: bool = False) -> None:
        self.random, self.measured, self.kept = random, measured, 0
        self._count = 0
        self._made: list[Tensor | None] = []
        self._seen: set[int] = set()

    def __call__(
        self,
        first: Callable[..., Any],
        again: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        later: tuple[Sequence[Any], Mapping[str, Any]] | None = None,
    ) -> Any:
        """Return ``first(*args, **kwargs)``; the backward pass calls ``again`` with ``later``, or the same ones."""
        self._again, self._later = again, later or (args, kwargs)
        self._inputs = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        self._versions = [_version(value) for value in self._inputs]
        self._chance = _random_state(self._inputs) if self.random else None
        if self.measured:
            self._seen = {value.untyped_storage().data_ptr() for value in self._inputs}
        outer, _here.inside = inside_region(), True
        try:
            with saved_tensors_hooks(self._pack, self._unpack):
                return first(*args, **kwargs)
        finally:
            _here.inside = outer
            self._seen = set()

    def _pack(self, tensor: Tensor) -> int:
        if self.measured and not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._seen:
                self._seen.add(storage.data_ptr())
                self.kept += storage.nbytes()
        self._count += 1
        return self._count - 1

    def _unpack(self, index: int) -> Tensor:
        if not self._made or self._made[index] is None:
            self._make()
        tensor = self._made[index]
        self._made[index] = None  # so that each goes as soon as it was used
        if tensor is None:
            raise RuntimeError("A recomputed block did other things the second time than the first.")
        return tensor

    def _make(self) -> None:
        """Compute the saved tensors again, in the thread of the backward pass."""
        if self._versions != [_version(value) for value in self._inputs]:
            raise RuntimeError(
                "The model changed the input of a block in place after the block had read it, so the block cannot be "
                "recomputed: turn gradient_checkpointing off for this model."
            )
        made: list[Tensor | None] = []

        def pack(tensor: Tensor) -> Tensor:
            # Detached: a node that keeps its own result would hold on to itself for ever.
            kept = tensor.detach()
            made.append(kept)
            if len(made) == self._count:
                raise _Enough
            return kept

        args, kwargs = self._later
        outer, _here.inside = inside_region(), True
        try:
            with ExitStack() as stack:
                if self._chance is not None:
                    stack.enter_context(_drawn_again(self._chance))
                stack.enter_context(torch.enable_grad())
                stack.enter_context(saved_tensors_hooks(pack, lambda tensor: tensor))
                self._again(*args, **kwargs)
        except _Enough:
            pass
        finally:
            _here.inside = outer
        if len(made) != self._count:
            raise RuntimeError(
                f"A recomputed block kept {len(made)} tensors the second time and {self._count} the first."
            )
        self._made = made


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


_State = tuple[Tensor, dict[torch.device, Tensor]]


def _random_state(inputs: Sequence[Tensor]) -> _State:
    devices = {value.device for value in inputs if value.is_cuda}
    return torch.get_rng_state(), {device: torch.cuda.get_rng_state(device) for device in devices}


def _drawn_again(state: _State) -> ExitStack:
    """Inside, the same random numbers come as after the state was noted; afterwards all goes on as if nothing was."""
    cpu, others = state
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(list(others)))
        torch.set_rng_state(cpu)
        for device, chance in others.items():
            torch.cuda.set_rng_state(chance, device)
        return stack.pop_all()
