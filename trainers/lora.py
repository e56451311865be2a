"""Adapters inside a model that is not ours: put in for a while, taken out without a trace."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from ..lora.delta import LowRankDelta
from ..lora.resolve import layer_name, tensor_name
from ..lora.suffixes import DOWN, UP, split
from .adapters import LayerAdapter, Method
from .injection import inject
from .layer_rules import LayerRule, plan_layers
from .low_rank import Dora, LowRank
from .randomness import generator

Kind = TypeVar("Kind", bound=LayerAdapter)

Devices = torch.device | Mapping[str, torch.device] | None
"""Where adapters go: one for all, or one for each prefix of the layers' names; None: where the base weight lies."""


class Adapters:
    """The adapters that are in a model, by canonical layer name. Made by :func:`injected`."""

    def __init__(self, layers: Mapping[str, LayerAdapter]) -> None:
        self._layers = dict(layers)

    def factors(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """(canonical name, down, up) of each layer whose adapter is of low rank (LoRA, DoRA), as they are trained."""
        for name, layer in self._layers.items():
            if isinstance(layer, LowRank):
                there = layer.parameters()
                yield name, there[DOWN], there[UP]

    def of_kind(self, kind: type[Kind]) -> dict[str, Kind]:
        """The layers whose adapter is of a kind, by canonical name."""
        return {name: layer for name, layer in self._layers.items() if isinstance(layer, kind)}

    @torch.no_grad()
    def begin(self, seed: int, dtype: torch.dtype, device: Devices) -> None:
        """Fresh numbers, each layer's from its own seeded stream."""
        for name, layer in self._layers.items():
            if isinstance(device, Mapping):
                where = next((one for prefix, one in device.items() if name.startswith(prefix)), None)
            else:
                where = device
            try:
                layer.begin(generator(seed, "adapter", name), dtype, where)
            except ValueError as why:
                raise ValueError(f"{name}: {why}") from why

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, in a fixed order: down and up of each layer (others: as the algorithm has it)."""
        return [parameter for layer in self._layers.values() for parameter in layer.parameters().values()]

    def rates(self) -> list[float]:
        """The factor of the learning rate of each of :meth:`parameters`."""
        return [rate for layer in self._layers.values() for rate in layer.rates()]

    def train(self, mode: bool) -> None:
        """Turn the adapters' own dropout on or off; the model's layers are left alone."""
        for layer in self._layers.values():
            layer.train(mode)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone, without gradients, for as long as the context lasts."""
        for layer in self._layers.values():
            layer.enable(False)
        try:
            with torch.no_grad():
                yield
        finally:
            for layer in self._layers.values():
                layer.enable(True)

    def tensors(self) -> dict[str, Tensor]:
        """CPU copies in the host's naming, in the adapters' own dtype: an ordinary file, and exact to resume from."""
        return {
            f"{tensor_name(name)}.{suffix}": tensor
            for name, layer in self._layers.items()
            for suffix, tensor in layer.tensors().items()
        }

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` took.

        Raises:
            ValueError: other layers, another algorithm or another rank than these adapters have.
        """
        there: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            base, suffix = split(name) or name.rsplit(".", 1)
            there.setdefault(layer_name(base), {})[suffix] = tensor
        if differing := sorted(set(there) ^ set(self._layers)):
            raise ValueError(
                f"The checkpoint adapts other layers than this run ({len(there)} against {len(self._layers)}; for "
                f"example {differing[0]}). Use the same model and the same targets, or start anew."
            )
        for name, layer in self._layers.items():
            try:
                layer.load(there[name])
            except ValueError as why:
                raise ValueError(
                    f"The checkpoint's {name} does not fit: {why}. Use the same model, algorithm and rank, or start "
                    f"anew."
                ) from why

    def finite(self) -> bool:
        """Whether every number of every adapter is finite. Waits for the device."""
        with torch.no_grad():
            sums = [factor.abs().sum() for factor in self.parameters()]
            return bool(torch.stack([one.to(sums[0].device) for one in sums]).isfinite().all())

    @torch.no_grad()
    def norm(self) -> Tensor:
        """‖ΔW‖, the Frobenius norm over all layers, a scalar on the adapters' device. No waiting for the device.

        Exactly 0 where nothing is learnt.
        """
        alike: dict[Any, list[LowRank]] = {}
        squares = []
        for layer in self._layers.values():
            if (shape := layer.alike()) is None:
                squares.append(layer.squared_norm())
            else:
                alike.setdefault(shape, []).append(cast(LowRank, layer))
        squares += [LowRank.squared_norms(layers) for layers in alike.values()]
        return torch.stack([square.to(squares[0].device) for square in squares]).sum().sqrt()

    def deltas(self) -> dict[str, LowRankDelta]:
        """ΔW of each layer, float32 on the CPU; empty where the algorithm's is not of low rank."""
        return {
            name: layer.delta()
            for name, layer in self._layers.items()
            if isinstance(layer, LowRank) and not isinstance(layer, Dora)
        }

    def result(self) -> dict[str, Tensor]:
        """:meth:`tensors` in float32: what is learnt, as the host's loader takes it."""
        return {name: tensor.float() for name, tensor in self.tensors().items()}


@contextmanager
def unchanged(module: nn.Module) -> Iterator[None]:
    """Leave a module as it was found: the same child objects in the same order, requires_grad, gradients and modes.

    Only what injection and training touch is noted; weights are not copied, for nothing here writes to them.
    """
    children = [(parent, dict(parent._modules), parent.training) for parent in module.modules()]
    flags = [(parameter, parameter.requires_grad, parameter.grad) for parameter in module.parameters()]
    attributes = dict(module.__dict__)
    try:
        yield
    finally:
        for parent, names, training in children:
            parent._modules.clear()
            parent._modules.update(names)
            parent.training = training
        for parameter, requires_grad, grad in flags:
            if parameter.requires_grad != requires_grad:
                # A weight made in inference mode lets itself be told only there.
                with torch.inference_mode(parameter.is_inference()):
                    parameter.requires_grad_(requires_grad)
            if parameter.grad is not grad:
                parameter.grad = grad
        for name in set(module.__dict__) - set(attributes):  # peft leaves its configuration here
            del module.__dict__[name]
        module.__dict__.update(attributes)


def split_names(modules: Mapping[str, nn.Module], layers: Sequence[str]) -> dict[str, list[str]]:
    """Canonical names as prefix -> paths in that module, each prefix there.

    Raises:
        ValueError: a name that starts with no prefix.
    """
    paths: dict[str, list[str]] = {prefix: [] for prefix in modules}
    for name in layers:
        # The longest: one module's prefix may begin another's.
        prefix = max((prefix for prefix in modules if name.startswith(prefix)), key=len, default=None)
        if prefix is None:
            raise ValueError(f"The layer {name} is of none of the modules {', '.join(modules)} that are trained.")
        paths[prefix].append(name.removeprefix(prefix))
    return paths


@contextmanager
def injected(
    modules: Mapping[str, nn.Module],
    layers: Sequence[str],
    *,
    rank: int,
    alpha: float,
    seed: int,
    method: Method | None = None,
    rules: Sequence[LayerRule] = (),
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: Devices = None,
    rates: Mapping[str, float] | None = None,
) -> Iterator[Adapters]:
    """Put an adapter beside each layer for as long as the context lasts: of a LoRA, y = W x + alpha/rank · up(down(x)).

    A parallel branch: W + ΔW is never made, W is never written to, and may be of any dtype. The base is frozen.
    ``down`` begins as Kaiming uniform (a = √5, as nn.Linear), each layer from its own seeded stream; ``up`` as zeros
    (Hu et al. 2021, arXiv 2106.09685, §4.1), so that training starts from the base model.

    Args:
        modules: prefix of the canonical names -> module: the Denoiser's, and text encoders where they are trained.
        layers: canonical names, from :func:`.targets.matched_layers`.
        method: another algorithm or init, see :mod:`.adapters`.
        rules: other ranks, alphas and learning rates for some of the layers.
        dropout: of the input of LoRA and DoRA.
        dtype: of the adapters.
        device: of the adapters. In a model that the host loaded in part, some weights lie elsewhere than the
            computation.
        rates: prefix -> factor of the learning rate of all layers of that module.

    Raises:
        ValueError: a rule matches no layer, or the algorithm needs weights that are not there as numbers.
    """
    plans = plan_layers(layers, rules, rank, alpha)
    with ExitStack() as stack:
        adapted: dict[str, LayerAdapter] = {}
        for prefix, names in split_names(modules, list(plans)).items():
            module = modules[prefix]
            stack.enter_context(unchanged(module))
            module.requires_grad_(False)
            if names:
                factor = (rates or {}).get(prefix, 1.0)
                planned = {name: plans[prefix + name] for name in names}
                theirs = {name: replace(plan, rate=plan.rate * factor) for name, plan in planned.items()}
                found = inject(module, theirs, method or Method(), dropout)
                adapted |= {prefix + name: layer for name, layer in found.items()}
        adapters = Adapters({name: adapted[name] for name in plans})
        adapters.begin(seed, dtype, device)
        adapters.train(False)
        yield adapters
