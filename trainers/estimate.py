"""How much memory a step will take, from a forward pass in which nothing is computed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .config import TrainingConfig
from .recompute import blocks_of, replaced_forward

log = logging.getLogger(__name__)

GIB = float(1 << 30)
_STATES = {"sgd": 1, "adafactor": 0}
"""fp32 values that an optimizer keeps a parameter; two where it is not named."""


@dataclass(frozen=True)
class Estimate:
    """Bytes on the device at the worst moment of a step.

    Attributes:
        weights: of the frozen model, and of text encoders that learn with it.
        blocks: of each block's frozen weights.
        trained: fp32 adapter, gradient and optimizer.
        outside: activations kept outside of blocks.
        kept: activations that each block keeps when it is not recomputed.
        inputs: of each block, kept when it is recomputed.
        again: of each block while it is recomputed, where that is not what it keeps: weights that are cast at each call
            are there as often as they were called (:mod:`.recast` is for blocks that are kept).
    """

    weights: int
    blocks: tuple[int, ...]
    trained: int
    outside: int
    kept: tuple[int, ...]
    inputs: tuple[int, ...]
    again: tuple[int, ...] = ()

    def activations(self, config: TrainingConfig) -> int:
        """What is kept for the backward pass, and one recomputed block's on top."""
        share = config.checkpointing_share if config.gradient_checkpointing else 0.0
        count = len(self.kept)
        largest = sorted(range(count), key=lambda block: (-self.kept[block], block))
        again = set(largest[: math.ceil(share * count)])
        kept = sum(self.inputs[block] if block in again else self.kept[block] for block in range(count))
        return self.outside + kept + max(((self.again or self.kept)[block] for block in again), default=0)

    def resident(self, config: TrainingConfig) -> int:
        """Frozen weights on the device: those that stay, and two of those that come and go."""
        if not config.offload_blocks or not self.blocks:
            return self.weights
        away = math.ceil(config.offload_blocks * len(self.blocks)) / len(self.blocks) * sum(self.blocks)
        return int(self.weights - away + min(away, 2 * max(self.blocks)))

    def extra(self, config: TrainingConfig) -> int:
        """Beside the weights."""
        return self.trained + self.activations(config)

    def total(self, config: TrainingConfig) -> int:
        """Everything."""
        return self.resident(config) + self.extra(config)

    def advice(self, config: TrainingConfig) -> list[tuple[str, int]]:
        """(option, about so many bytes less), the greatest saving first; those that save nothing left out."""
        now = self.total(config)
        batch = config.batch_size
        tried = {
            "turn on gradient_checkpointing in Training Options": replace(
                config, gradient_checkpointing=True, checkpointing_share=1.0
            ),
            "set offload_blocks to 1 in Memory Options": replace(config, offload_blocks=1.0, compile=False),
        }
        found = [(what, now - self.total(other)) for what, other in tried.items()]
        if batch > 1:
            less = int(self.activations(config) * (1 - 1 / batch))
            found.append(
                (f"set batch_size to 1 and gradient_accumulation to {batch * config.gradient_accumulation}", less)
            )
        found.append(("halve the dataset's resolution", int(self.activations(config) * 0.75)))
        return sorted((pair for pair in found if pair[1] > 0), key=lambda pair: -pair[1])

    def line(self, config: TrainingConfig) -> str:
        """In words, before the first step."""
        return (
            f"estimated memory {self.total(config) / GIB:.2f} GiB: weights {self.resident(config) / GIB:.2f}, "
            f"activations {self.activations(config) / GIB:.2f}, LoRA and optimizer {self.trained / GIB:.2f}"
        )


def rehearse(
    module: nn.Module,
    layers: Mapping[str, nn.Module],
    forward: Callable[[], Tensor],
    config: TrainingConfig,
    others: Sequence[nn.Module] = (),
) -> Estimate | None:
    """Run ``forward`` with tensors that have shapes but no numbers, and count what its graph keeps.

    Exact but for the adapters' few channels, what an operation needs while it runs, and what an allocator wastes.
    Takes a second or two for a large model; no weight is touched.

    Args:
        module: the Denoiser's, frozen, without adapters.
        layers: those that will be adapted: each is taken to keep its input.
        forward: makes its inputs anew and predicts.
        others: text encoders that it goes through; their blocks are neither recomputed nor offloaded.

    Returns:
        None where the model does something that needs numbers.
    """
    blocks = blocks_of(module)
    parameters = [parameter for each in (module, *others) for parameter in each.parameters()]
    inputs = [0] * len(blocks)
    kept, again = (_Count(len(blocks), parameters) for _ in range(2))
    now: int | None = None  # the block that runs

    def pack(tensor: Tensor) -> Tensor:
        kept.add(tensor, now)
        again.add(tensor, now)
        return tensor.detach()

    def pack_cast(tensor: Tensor) -> Tensor:
        again.add(tensor, now)
        return tensor.detach()

    def counting(block: Callable[..., Any], index: int) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal now
            tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
            inputs[index] += sum(_bytes(value) for value in tensors if value.requires_grad)
            now = index
            try:
                return block(*args, **kwargs)
            finally:
                now = None

        return run

    def casting(layer: Any, layer_forward: Callable[..., Any], learns: bool) -> Callable[..., Any]:
        def run(x: Tensor, *args: Any, **kwargs: Any) -> Any:
            moved = layer.weight.device != x.device
            if layer.weight.dtype == x.dtype and not moved:
                return layer_forward(x, *args, **kwargs)
            comes = moved and config.offload_blocks > 0  # with its block, and is no copy then
            if x.requires_grad or layer.weight.requires_grad:
                with saved_tensors_hooks(Tensor.detach if comes else pack_cast, lambda tensor: tensor):
                    result = layer_forward(x, *args, **kwargs)
                if layer.weight.requires_grad:
                    pack(x)
                elif not comes and x.requires_grad:
                    kept.add(x, now)
            else:
                result = layer_forward(x, *args, **kwargs)
            if learns and not layer.weight.requires_grad:  # fp8 cannot; the branch beside it is of x's kind
                weight = nn.Parameter(torch.empty(layer.weight.shape, dtype=x.dtype, device=x.device))
                linear = isinstance(layer, nn.Linear)
                result = result + (F.linear(x, weight) if linear else layer._conv_forward(x, weight, None))
            return result

        return run

    from torch._subclasses.fake_tensor import FakeTensorMode

    learning = [layer.weight for layer in layers.values() if isinstance(layer.weight, nn.Parameter)]
    try:
        with ExitStack() as stack:
            # Some models keep what they made (tables of positions); without numbers it must not stay.
            for each in (inner for outer in (module, *others) for inner in outer.modules()):
                stack.callback(_put_back, each, dict(each.__dict__), dict(each._buffers))
            for index, block in enumerate(blocks):
                stack.enter_context(replaced_forward(block, counting(block.forward, index)))
            chosen = {id(layer) for layer in layers.values()}
            for each in (inner for outer in (module, *others) for inner in outer.modules()):
                if isinstance(each, nn.Linear | nn.Conv2d) and isinstance(each.weight, nn.Parameter):
                    stack.enter_context(replaced_forward(each, casting(each, each.forward, id(each) in chosen)))
            for weight in learning:
                if weight.dtype.itemsize > 1:
                    weight.requires_grad_(True)
                    stack.callback(weight.requires_grad_, False)
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(saved_tensors_hooks(pack, lambda tensor: tensor))
            forward()
    except Exception as why:
        log.info("the step's memory could not be rehearsed: %s: %s", type(why).__name__, why)
        return None
    adapter = sum(config.rank * (weight.shape[0] + weight[0].numel()) for weight in learning)
    return Estimate(
        weights=sum(map(_bytes, parameters)),
        blocks=tuple(sum(map(_bytes, block.parameters())) for block in blocks),
        trained=adapter * 4 * (2 + _STATES.get(config.optimizer, 2)),
        outside=kept.outside,
        kept=tuple(kept.blocks),
        inputs=tuple(inputs),
        again=tuple(again.blocks),
    )


class _Count:
    """Bytes that a graph keeps, each storage once, those of parameters left out."""

    def __init__(self, blocks: int, parameters: Sequence[Tensor]) -> None:
        self.blocks, self.outside = [0] * blocks, 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in parameters}
        self._alive: list[Tensor] = []

    def add(self, tensor: Tensor, block: int | None) -> None:
        """A tensor that is kept in a block, or outside of all."""
        storage = tensor.untyped_storage()
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter) or storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self._alive.append(tensor.detach())  # so that no other gets its number
        if block is None:
            self.outside += storage.nbytes()
        else:
            self.blocks[block] += storage.nbytes()


def _put_back(module: nn.Module, attributes: dict[str, Any], buffers: dict[str, Tensor | None]) -> None:
    module.__dict__.clear()
    module.__dict__.update(attributes)
    module._buffers.clear()
    module._buffers.update(buffers)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
