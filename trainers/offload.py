"""Block swap: the frozen weights of some blocks live elsewhere, and come to the device while their block needs them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .recompute import blocks_of, replaced_forward
from .regions import inside_region

log = logging.getLogger(__name__)


class Kept(Protocol):
    """A tensor at home."""

    @property
    def tensor(self) -> Tensor:
        """Stands in the module while the weight is at home: whole and readable, but slow or on another device."""

    def fetch(self, device: torch.device) -> Tensor:
        """It, on the device; may still be on its way there on the current stream."""

    def leave(self) -> None:
        """What was fetched is not needed for now. It may be read on, at the price of being fetched again."""


class Home(Protocol):
    """Where weights live that are not on the device."""

    def keep(self, tensor: Tensor) -> Kept:
        """Put a copy there."""


@dataclass(frozen=True)
class _InMemory:
    tensor: Tensor

    def fetch(self, device: torch.device) -> Tensor:
        return self.tensor.to(device, non_blocking=True, copy=True)

    def leave(self) -> None:
        pass  # the copy goes with its last user


_SLAB = 512 << 20
"""Bytes of pinned memory at a time. Torch rounds each pinned tensor up to a power of two, so that a model's weights,
pinned one by one, would take half as much main memory again."""


def _pinned(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


class MemoryHome:
    """The machine's main memory, pinned where that can be had, so that copies run beside the computation.

    Args:
        all: what lies in main memory already is pinned too.
    """

    def __init__(self, all: bool = False) -> None:
        self._slabs: list[tuple[Tensor, int]] = []  # and how much of each is taken
        self._pins, self._all = True, all

    def keep(self, tensor: Tensor) -> Kept:
        """Put a copy there."""
        if not tensor.is_cuda and not self._all:
            return _InMemory(tensor.detach().to("cpu", copy=True))
        room = self.room(_size(tensor))
        copy = room.view(tensor.dtype).view(tensor.shape)
        return _InMemory(copy.copy_(tensor.detach()))

    def room(self, size: int) -> Tensor:
        """(size,) bytes of their own, pinned if possible: in the first slab that has room."""
        for number, (slab, taken) in enumerate(self._slabs):
            if taken + size <= len(slab):
                self._slabs[number] = slab, -(-(taken + size) // 512) * 512
                return slab[taken : taken + size]
        if self._pins:
            try:
                self._slabs.append((_pinned(max(size, _SLAB)), 0))
                return self.room(size)
            except RuntimeError as why:
                log.warning("weights that were swapped out could not be pinned (%s); copies are slower", why)
                self._pins = False
        return torch.empty(size, dtype=torch.uint8)


@dataclass(frozen=True)
class _InFile:
    tensor: Tensor  # the file itself: a private mapping

    def fetch(self, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return self.tensor.to(device)
        # No copy: the pages that the system keeps of the file are the weight. A read into memory of our own costs a
        # fault a page and was more than half of a step's time.
        _advise(self.tensor, _POPULATE_READ)
        return self.tensor

    def leave(self) -> None:
        _advise(self.tensor, _DONT_NEED)


_DONT_NEED = 4
"""MADV_DONTNEED: the pages are no part of this process any more; the next access reads the file again."""
_POPULATE_READ = 22
"""MADV_POPULATE_READ, Linux 5.14 and newer: all pages at once. Elsewhere each comes when it is touched."""


def _advise(tensor: Tensor, advice: int) -> None:
    """Tell the system about a mapping's pages. Where it takes no advice, it takes them when it needs memory."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another libc
            madvise = ctypes.CDLL(None).madvise
            madvise(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(_size(tensor)), ctypes.c_int(advice))


class FileHome:
    """Files, for where the device is the machine's own memory. They go when the folder given goes.

    Args:
        folder: on a real disk, with room for the weights.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._count = 0

    def keep(self, tensor: Tensor) -> Kept:
        """Put a copy there."""
        # A copy: what numpy has seen, torch does not empty any more.
        whole = tensor.detach().to("cpu", copy=True).contiguous()
        path = self.folder / f"{self._count}.bin"
        self._count += 1
        with path.open("xb", buffering=0) as file:
            rest = memoryview(whole.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            while len(rest):
                rest = rest[file.write(rest) :]
        mapped: Any = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=_size(whole))
        return _InFile(torch.empty(0, dtype=whole.dtype).set_(mapped, 0, whole.shape, whole.stride()))


@dataclass
class _Weight:
    """A frozen parameter: whose it is, the host's own object, and its copy at home."""

    owner: nn.Module
    name: str
    original: nn.Parameter
    kept: Kept
    standing: nn.Parameter  # in its place while it is at home
    emptied: bool = True  # the original has no memory meanwhile


@dataclass(frozen=True)
class _Ref:
    """What the graph keeps of a weight: which one, and which view of it."""

    weight: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _Swapped:
    """One block whose weights are at home."""

    def __init__(self, weights: list[_Weight], device: torch.device) -> None:
        self.weights, self.device = weights, device
        self.coming: list[Tensor] | None = None
        self.arrived: Any = None

    def prefetch(self, stream: Any) -> None:
        """Begin to fetch the weights on a side stream.

        It waits for all that was asked of the device so far, and only it allocates there: so what another block's
        weights have left is free to be written over as soon as Python has let go of them. No ``record_stream``: Python
        is ahead of the device by many blocks, and their memory would wait for it.
        """
        if self.coming is None:
            stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(stream):
                self.coming = self._fetched()
                self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
                self.arrived.record(stream)

    def here(self) -> list[Tensor]:
        """The weights on the device."""
        if self.coming is None:
            return self._fetched()
        tensors, self.coming = self.coming, None
        torch.cuda.current_stream(self.device).wait_event(self.arrived)
        return tensors

    def leave(self) -> None:
        """They are not needed on the device for now."""
        for weight in self.weights:
            weight.kept.leave()

    def _fetched(self) -> list[Tensor]:
        with torch.no_grad():
            return [weight.kept.fetch(self.device) for weight in self.weights]


class Offload:
    """What :func:`offloaded_blocks` does meanwhile.

    Attributes:
        count: blocks that were swapped out.
        bytes: of their weights, which the device no longer holds.
        largest: bytes of the largest of them; it holds one at a time, and on CUDA the next.
        fetches: how often a block was fetched so far.
    """

    def __init__(self, blocks: list[_Swapped], device: torch.device) -> None:
        self.blocks = blocks
        self.count = len(blocks)
        sizes = [sum(_size(weight.kept.tensor) for weight in block.weights) for block in blocks]
        self.bytes, self.largest = sum(sizes), max(sizes, default=0)
        self.fetches = 0
        self._stream: Any = None
        if device.type == "cuda" and blocks:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._backward: tuple[int, list[Tensor]] | None = None
        self._last: int | None = None

    @contextmanager
    def present(self, index: int, backward: bool) -> Iterator[list[Tensor]]:
        """The block's weights are on the device and in their places inside.

        They are let go when the next block's come: after a block was recomputed, its backward pass needs them still.
        """
        block = self.blocks[index]
        self._backward = None
        tensors = self._take(index, backward)
        for weight, tensor in zip(block.weights, tensors, strict=True):
            weight.owner._parameters[weight.name] = nn.Parameter(tensor, requires_grad=False)
        try:
            yield tensors
        finally:
            for weight in block.weights:
                weight.owner._parameters[weight.name] = weight.standing

    def for_backward(self, index: int) -> list[Tensor]:
        """The block's weights, for as long as the backward pass does not ask for another block's."""
        if self._backward is None or self._backward[0] != index:
            self._backward = None
            self._backward = index, self._take(index, True)
        return self._backward[1]

    def _take(self, index: int, backward: bool) -> list[Tensor]:
        self.fetches += 1
        if self._last is not None and self._last != index:
            self.blocks[self._last].leave()
        self._last = index
        tensors = self.blocks[index].here()
        following = index + (-1 if backward else 1)
        if self._stream is not None:
            if 0 <= following < self.count:
                self.blocks[following].prefetch(self._stream)
            for other, block in enumerate(self.blocks):
                if other != following and block.coming is not None:  # fetched for a pass that did not come
                    block.coming = None
        return tensors


@contextmanager
def offloaded_blocks(
    module: nn.Module, share: float, device: torch.device, home: Home | None = None
) -> Iterator[Offload]:
    """Keep the frozen weights of blocks at ``home``; stream each block's to the device for its passes.

    A block is what :func:`.recompute.blocks_of` says. Its trained parameters and its buffers stay on the device. It is
    fetched for its forward pass and again for its backward pass: when the block is recomputed, by running it again,
    else when its graph asks for a weight. On CUDA the next block's weights come over a side stream from pinned memory
    meanwhile, so two blocks' weights are on the device at a time.

    Tested with a CPU as the device, against the same model left alone: gradients to the bit, weights and objects
    afterwards, peak of resident memory. The CUDA stream's part has not been run in these tests;
    benchmarks/gpu_step.py compares its losses with those of a model left alone.

    Enter it when adapters are in place, before :func:`.recompute.recomputed_blocks`. The model's own parameter
    objects come back afterwards with their bytes in them; meanwhile their storage is empty, and what stands in the
    modules is readable, for hosts that look around.

    Args:
        share: of the blocks that have weights, in [0, 1], rounded up; spread evenly, so that a block that
            stays gives time to fetch the next.
        device: where they compute.
        home: None: main memory if the device is another one, else a file in a temporary folder.

    Raises:
        ValueError: no block's weights can be swapped.
    """
    with ExitStack() as stack:
        if home is None:
            home = MemoryHome(device.type == "cuda") if device.type != "cpu" else FileHome(_temporary(stack))
        movable = [(block, found) for block in blocks_of(module) if (found := _movable(block, device))]
        if share > 0 and not movable:
            raise ValueError(
                "Block swap found no block with weights that it can move. Set offload_blocks to 0; the model has no "
                "blocks that are known, or its weights are quantised in a way that is not."
            )
        chosen = _spread(len(movable), math.ceil(share * len(movable) - 1e-9))
        swapped: list[_Swapped] = []
        stack.callback(_bring_back, swapped)
        for index in chosen:
            swapped.append(_swap_out(movable[index][1], device, home))
        offload = Offload(swapped, device)
        _release(device)
        for number, index in enumerate(chosen):
            block = movable[index][0]
            stack.enter_context(replaced_forward(block, _streaming(block.forward, number, offload)))
        yield offload


def _streaming(forward: Callable[..., Any], index: int, offload: Offload) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with offload.present(index, backward=torch._C._current_graph_task_id() != -1) as tensors:
            if inside_region() or not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            numbers = {tensor.untyped_storage().data_ptr(): number for number, tensor in enumerate(tensors)}

            def pack(tensor: Tensor) -> Tensor | _Ref:
                number = numbers.get(tensor.untyped_storage().data_ptr())
                if number is None or tensor.dtype != tensors[number].dtype:
                    return tensor.detach()  # or a node that keeps its own result would hold on to itself for ever
                return _Ref(number, tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()))

            with saved_tensors_hooks(pack, unpack):
                result = forward(*args, **kwargs)
            tensors = []  # the graph holds on to pack, and must not hold on to them
            return result

    def unpack(packed: Tensor | _Ref) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        return offload.for_backward(index)[packed.weight].as_strided(packed.size, packed.stride, packed.offset)

    return run


def _release(device: torch.device) -> None:
    """Give what is free back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "cpu":
        with contextlib.suppress(OSError, AttributeError):  # another libc, another system
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def _temporary(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="likeness-blocks-")))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _spread(count: int, chosen: int) -> list[int]:
    """So many of ``range(count)``, evenly."""
    return sorted({(number * count) // chosen for number in range(chosen)}) if chosen else []


def _movable(block: nn.Module, device: torch.device) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """The frozen parameters of a block, each alone in its storage, on the device or where a host left them.

    A host with little memory on the device leaves a part of the model in main memory and copies each weight as its
    layer is called, which nothing overlaps; here they come with their block.
    """
    found = []
    for owner in block.modules():
        for name, parameter in owner._parameters.items():
            if parameter is None or parameter.requires_grad or type(parameter.data) is not Tensor:
                continue
            storage = parameter.untyped_storage()
            alone = storage.nbytes() == _size(parameter) and parameter.is_contiguous()
            if not alone or not storage.nbytes():
                continue
            there = parameter.device.type == device.type and storage.resizable()
            if there or (parameter.device.type == "cpu" and device.type != "cpu"):
                found.append((owner, name, parameter))
    return found


def _swap_out(found: Sequence[tuple[nn.Module, str, nn.Parameter]], device: torch.device, home: Home) -> _Swapped:
    weights = []
    for owner, name, parameter in found:
        at_home = parameter.device.type == "cpu" and device.type != "cpu"
        # What a host has pinned must stay where it is, and mapped files cannot go.
        emptied = not at_home or (parameter.untyped_storage().resizable() and not parameter.is_pinned())
        kept = home.keep(parameter) if emptied else _InMemory(parameter.detach())
        weights.append(_Weight(owner, name, parameter, kept, nn.Parameter(kept.tensor, requires_grad=False), emptied))
    for weight in weights:
        weight.owner._parameters[weight.name] = weight.standing
        # The host keeps parameter objects of its own on this storage, so letting go of ours would free nothing.
        if weight.emptied:
            weight.original.untyped_storage().resize_(0)
    return _Swapped(weights, device)


def _bring_back(swapped: list[_Swapped]) -> None:
    """Fill the storages again and put the model's own parameters back in their places."""
    for block in swapped:
        block.coming = None
    for block in swapped:
        for weight in block.weights:
            original, kept = weight.original, weight.kept
            if not weight.emptied:
                if weight.owner._parameters.get(weight.name) is weight.standing:
                    weight.owner._parameters[weight.name] = original
                continue
            storage, size = original.untyped_storage(), _size(kept.tensor)
            try:
                storage.resize_(size)
            except RuntimeError:  # after an error of want of memory, much is free that nobody has let go of yet
                gc.collect()
                _release(original.device)
                storage.resize_(size)
            with torch.no_grad(), torch.inference_mode(original.is_inference()):
                original.data.copy_(kept.fetch(original.device))
            kept.leave()
            if weight.owner._parameters.get(weight.name) is weight.standing:
                weight.owner._parameters[weight.name] = original
