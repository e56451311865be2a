"""LoRA adapters inside a model that is not ours: put in by peft, taken out without a trace."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.delta import LowRankDelta
from .randomness import generator

_ADAPTER = "likeness"


class Adapters:
    """The adapters that are in a model, by canonical layer name. Made by :func:`injected`."""

    def __init__(self, layers: Mapping[str, Any], alpha: float) -> None:
        self._layers = dict(layers)
        self._alpha = alpha

    def factors(self) -> Iterator[tuple[str, nn.Parameter, nn.Parameter]]:
        """(canonical name, down, up) of each layer."""
        for name, layer in self._layers.items():
            yield name, layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight

    def begin(self, seed: int, dtype: torch.dtype, device: torch.device | None) -> None:
        """Fresh factors, each layer's from its own seeded stream; None: on the device of the base weight."""
        for name, layer in self._layers.items():
            down, up = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
            where = device or down.weight.device
            bound = down.weight[0].numel() ** -0.5  # Kaiming uniform with a = √5 is U(−1/√fan_in, 1/√fan_in)
            drawn = torch.empty(down.weight.shape, dtype=torch.float32)
            drawn.uniform_(-bound, bound, generator=generator(seed, "adapter", name))
            # New objects: .data may not move a parameter between any two kinds of device.
            down.weight = nn.Parameter(drawn.to(where, dtype))
            up.weight = nn.Parameter(torch.zeros(up.weight.shape, dtype=dtype, device=where))

    def parameters(self) -> list[nn.Parameter]:
        """Everything that is trained, in a fixed order: down and up of each layer."""
        return [factor for _, down, up in self.factors() for factor in (down, up)]

    def train(self, mode: bool) -> None:
        """Turn the adapters' own dropout on or off; the model's layers are left alone."""
        for layer in self._layers.values():
            layer.lora_dropout[_ADAPTER].train(mode)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone, without gradients, for as long as the context lasts."""
        for layer in self._layers.values():
            layer.enable_adapters(False)
        try:
            with torch.no_grad():
                yield
        finally:
            for layer in self._layers.values():
                layer.enable_adapters(True)

    def tensors(self) -> dict[str, Tensor]:
        """CPU copies in the host's naming, in the adapters' own dtype: an ordinary LoRA, and exact to resume from."""
        tensors: dict[str, Tensor] = {}
        for name, down, up in self.factors():
            tensors[f"{name}.lora_up.weight"] = up.detach().cpu().clone().contiguous()
            tensors[f"{name}.lora_down.weight"] = down.detach().cpu().clone().contiguous()
            tensors[f"{name}.alpha"] = torch.tensor(self._alpha)
        return tensors

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` took.

        Raises:
            ValueError: other layers or another rank than these adapters have.
        """
        there = {name.rsplit(".lora_", 1)[0] for name in tensors if ".lora_" in name}
        if differing := sorted(there ^ set(self._layers)):
            raise ValueError(
                f"The checkpoint adapts other layers than this run ({len(there)} against {len(self._layers)}; for "
                f"example {differing[0]}). Use the same model and the same targets, or start anew."
            )
        for name, down, up in self.factors():
            for factor, saved in ((down, tensors[f"{name}.lora_down.weight"]), (up, tensors[f"{name}.lora_up.weight"])):
                if factor.shape != saved.shape:
                    raise ValueError(
                        f"The checkpoint's {name} is {tuple(saved.shape)} where this run's is {tuple(factor.shape)}. "
                        f"Use the same model and the same rank, or start anew."
                    )
                factor.copy_(saved)

    def finite(self) -> bool:
        """Whether every number of every adapter is finite. Waits for the device."""
        with torch.no_grad():
            return bool(torch.stack([factor.abs().sum() for factor in self.parameters()]).isfinite().all())

    @torch.no_grad()
    def norm(self) -> Tensor:
        """‖ΔW‖, the Frobenius norm over all layers, a float32 scalar on the device.

        ‖B A‖² is the sum of (BᵀB) ∘ (A Aᵀ): products of rank × rank, and ΔW is never made. No waiting for the device.
        """
        squares = []
        for _, down, up in self.factors():
            a, b = down.flatten(1).float(), up.flatten(1).float()
            squares.append((self._alpha / len(a)) ** 2 * ((b.T @ b) * (a @ a.T)).sum())
        device = squares[0].device
        return torch.stack([square.to(device) for square in squares]).sum().clamp(min=0).sqrt()

    def deltas(self) -> dict[str, LowRankDelta]:
        """ΔW of each layer, float32 on the CPU."""
        return {
            name: LowRankDelta(
                up=up.detach().to("cpu", torch.float32, copy=True).contiguous(),
                down=down.detach().to("cpu", torch.float32, copy=True).contiguous(),
                scale=self._alpha / down.shape[0],
                kind="linear" if down.ndim == 2 else "conv",
            )
            for name, down, up in self.factors()
        }


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
    dropout: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Iterator[Adapters]:
    """Put a LoRA beside each layer for as long as the context lasts: y = W x + alpha/rank · up(down(x)).

    A parallel branch: W + ΔW is never made, and W may be of any dtype. The base is frozen. ``down`` begins as
    Kaiming uniform (a = √5, as nn.Linear), each layer from its own seeded stream; ``up`` as zeros (Hu et al. 2021,
    arXiv 2106.09685, §4.1), so that training starts from the base model.

    Args:
        modules: prefix of the canonical names -> module: the Denoiser's, and text encoders where they are trained.
        layers: canonical names, from :func:`.targets.matched_layers`.
        dtype: of the adapters.
        device: of the adapters; None: each where its base weight lies. In a model that the host loaded in part, some
            weights lie elsewhere than the computation.
    """
    # peft brings transformers with it: seconds that only those who train should pay.
    from peft import LoraConfig, inject_adapter_in_model

    with ExitStack() as stack:
        adapted: dict[str, nn.Module] = {}
        for prefix, names in split_names(modules, layers).items():
            module = modules[prefix]
            stack.enter_context(unchanged(module))
            module.requires_grad_(False)
            if not names:
                continue
            # An expression and not a list: peft takes the entries of a list for suffixes too.
            peft_config = LoraConfig(
                r=rank,
                lora_alpha=alpha,  # type: ignore[arg-type]  # a float serves as well
                lora_dropout=dropout,
                target_modules="|".join(re.escape(name) for name in names),
                bias="none",
            )
            inject_adapter_in_model(peft_config, module, adapter_name=_ADAPTER)
            adapted |= {prefix + name: module.get_submodule(name) for name in names}
        adapters = Adapters({name: adapted[name] for name in layers}, alpha)
        adapters.begin(seed, dtype, device)
        adapters.train(False)
        yield adapters
