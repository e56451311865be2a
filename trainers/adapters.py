"""One layer's adapter: where its numbers lie, how they begin, and what the host calls them. An algorithm a class, in
low_rank.py, products.py, adaptive_rank.py and adalora.py; injection.py puts them beside the layers.

``tensors`` of each gives what ComfyUI's weight adapters (and kohya's and LyCORIS' files) know by these names, so that
the host makes the same weight of them: tests/host/test_adapters.py asks it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .config import TrainingConfig
from .layer_rules import LayerPlan

NAME = "likeness"
"""Of our adapter in peft's layers."""

Slot = tuple[Any, str]
"""(owner, attribute) of a parameter, which moves between devices by being replaced."""


@dataclass(frozen=True)
class Method:
    """Which algorithm, and how it begins; see the fields of the same names in ``TrainingConfig``."""

    algorithm: str = "lora"
    init: str = "kaiming"
    rank_stabilised: bool = False
    lokr_factor: int = -1
    export_energy: float = 1.0
    loraplus_ratio: float = 1.0

    @classmethod
    def of(cls, config: TrainingConfig) -> Method:
        """As a configuration says."""
        energy = config.export_energy if config.export_truncation == "energy" else 1.0
        return cls(
            config.algorithm, config.init, config.rank_stabilised, config.lokr_factor, energy, config.loraplus_ratio
        )


class LayerAdapter:
    """What all algorithms share. ``slots``: name in the host's files -> where the parameter lies, in a fixed order."""

    zeros: ClassVar[frozenset[str]] = frozenset()
    """Those that begin as zeros, so that training starts from the base model; the others begin as Kaiming uniform."""
    faster: ClassVar[frozenset[str]] = frozenset()
    """Those whose learning rate ``Method.loraplus_ratio`` raises."""

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        self.layer, self.plan, self.method = layer, plan, method
        self.scale = plan.alpha / (plan.rank**0.5 if method.rank_stabilised else plan.rank)
        self.slots: dict[str, Slot] = self._slots()

    def _slots(self) -> dict[str, Slot]:
        raise NotImplementedError

    @property
    def base(self) -> Any:
        """The host's own layer."""
        return self.layer.base_layer

    def parameters(self) -> dict[str, nn.Parameter]:
        """Name in the host's files -> parameter."""
        return {suffix: getattr(owner, attribute) for suffix, (owner, attribute) in self.slots.items()}

    def rates(self) -> list[float]:
        """The factor of the learning rate of each of :meth:`parameters`."""
        ratio = self.method.loraplus_ratio
        return [self.plan.rate * (ratio if suffix in self.faster else 1.0) for suffix in self.slots]

    def put(self, suffix: str, value: Tensor) -> None:
        """A new parameter: .data may not move one between any two kinds of device."""
        owner, attribute = self.slots[suffix]
        setattr(owner, attribute, nn.Parameter(value))

    def begin(self, chance: torch.Generator, dtype: torch.dtype, device: torch.device | None) -> None:
        """Fresh numbers, all from ``chance``; None: on the device of the base weight."""
        for suffix, old in self.parameters().items():
            fresh = torch.zeros(old.shape) if suffix in self.zeros else self.drawn(suffix, old.shape, chance)
            self.put(suffix, fresh.to(device or self.base.weight.device, dtype))

    def drawn(self, suffix: str, shape: torch.Size, chance: torch.Generator) -> Tensor:
        """Kaiming uniform with a = √5, as nn.Linear begins: U(−1/√fan_in, 1/√fan_in)."""
        bound = shape[1:].numel() ** -0.5
        return torch.empty(shape).uniform_(-bound, bound, generator=chance)

    def train(self, mode: bool) -> None:
        """Turn the adapter's own dropout on or off."""

    def enable(self, mode: bool) -> None:
        """Off: the layer computes what it does without an adapter."""
        self.layer._disable_adapters = not mode

    def tensors(self) -> dict[str, Tensor]:
        """Name in the host's files -> a copy on the CPU, in the adapter's dtype."""
        return {suffix: copied(parameter) for suffix, parameter in self.parameters().items()}

    def change(self) -> Tensor:
        """ΔW as a matrix, exactly 0 where nothing is learnt; float32 or better, on the adapter's device."""
        raise NotImplementedError

    def squared_norm(self) -> Tensor:
        """‖ΔW‖², the Frobenius norm."""
        return self.change().square().sum()

    def alike(self) -> tuple[Any, ...] | None:
        """Layers of which this is equal are taken together by :meth:`LowRank.squared_norms`; None: only alone."""
        return None

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` took, to the bit.

        Raises:
            ValueError: something is missing or of another shape.
        """
        for suffix, parameter in self.parameters().items():
            saved = tensors.get(suffix)
            if saved is None or saved.shape != parameter.shape:
                there = "missing" if saved is None else str(tuple(saved.shape))
                raise ValueError(f"{suffix} is {there} where this run's is {tuple(parameter.shape)}")
            parameter.copy_(saved)


def check_base(layer: Any, what: str) -> None:
    """Whether a layer's weight is there to be computed with.

    Raises:
        ValueError: it is quantised, or patched as the model runs; says what to do.
    """
    weight: Tensor = layer.weight
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise ValueError(
            f"{what} needs the base model's weights as numbers, and they are stored as {weight.dtype}. Load the model "
            f"in bf16 or fp16, or choose the algorithm lora with the init kaiming."
        )
    if getattr(layer, "weight_function", None):
        raise ValueError(
            f"{what} needs the base model's weights, and a part of the model is not on the device, so that the LoRAs "
            f"on it are applied as it runs. Free memory, or choose the algorithm lora with the init kaiming."
        )


def base_weight(layer: Any) -> Tensor:
    """A layer's weight in float32 (or better), where it lies."""
    weight: Tensor = layer.weight
    return weight.detach().to(torch.promote_types(weight.dtype, torch.float32))


def copied(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()
