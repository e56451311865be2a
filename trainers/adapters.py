"""One layer's adapter, an algorithm a class: where its numbers lie, how they begin, and what the host calls them.

``tensors`` of each gives what ComfyUI's weight adapters (and kohya's and LyCORIS' files) know by these names, so that
the host makes the same weight of them: tests/host/test_adapters.py asks it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..lora.delta import LowRankDelta
from ..lora.suffixes import ALPHA, DOWN, UP
from .config import TrainingConfig
from .layer_rules import LayerPlan
from .oft import OFTLayer, block_size

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
        return {suffix: _copy(parameter) for suffix, parameter in self.parameters().items()}

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


class LowRank(LayerAdapter):
    """ΔW = scale · up · down (Hu et al. 2021, arXiv 2106.09685).

    With the inits PiSSA (Meng et al. 2024, arXiv 2404.02948) and OLoRA (Büyükakyüz 2024, arXiv 2406.01775) the factors
    begin as a part of W, which both papers take out of W. Here W stays as it is, and what the factors began as is
    subtracted beside it: ΔW = scale · (up · down − up₀ · down₀). The same function, for a W of any dtype; and as a
    file, [up, −up₀] and [down; down₀] are a LoRA of twice the rank for the base model as everybody has it.
    """

    zeros = frozenset({UP})
    faster = frozenset({UP})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        super().__init__(layer, plan, method)
        layer.scaling[NAME] = self.scale
        self.start: tuple[Tensor, Tensor] | None = None
        """(down₀, −up₀)"""

    def _slots(self) -> dict[str, Slot]:
        return {DOWN: (self.layer.lora_A[NAME], "weight"), UP: (self.layer.lora_B[NAME], "weight")}

    def begin(self, chance: torch.Generator, dtype: torch.dtype, device: torch.device | None) -> None:
        super().begin(chance, dtype, device)
        if self.method.init in ("pissa", "olora"):
            weight = base_weight(self.base).flatten(1)
            down, up = self.parameters()[DOWN], self.parameters()[UP]
            if self.method.init == "pissa":
                left, values, right = principal(weight, down.shape[0], chance)
                root = (values / self.scale).sqrt()
                factors = root[:, None] * right, left * root
            else:
                # The first columns of Q are those of the first columns of W, and R is Qᵀ W.
                q = torch.linalg.qr(weight[:, : down.shape[0]])[0]
                factors = q.T @ weight, q
            for suffix, old, new in ((DOWN, down, factors[0]), (UP, up, factors[1])):
                self.put(suffix, new.reshape(old.shape).to(old.device, dtype).contiguous())
            now = self.parameters()
            self.start = now[DOWN].detach().clone(), -now[UP].detach()
            self.layer.register_forward_hook(self._subtract)

    def drawn(self, suffix: str, shape: torch.Size, chance: torch.Generator) -> Tensor:
        if self.method.init == "gaussian":
            return torch.empty(shape).normal_(std=1 / shape[0], generator=chance)
        return super().drawn(suffix, shape, chance)

    def _subtract(self, layer: Any, inputs: tuple[Any, ...], out: Tensor) -> Tensor:
        """A hook after the layer, whichever forward it has. A bf16 model is met in bf16, as autocast would."""
        if self.start is None or layer._disable_adapters:
            return out
        x, (down, up) = inputs[0], self.start
        dtype = x.dtype if x.dtype == torch.bfloat16 else down.dtype
        x, down, up = x.to(dtype), down.to(dtype), up.to(dtype)
        if up.ndim == 2:
            return torch.add(out, F.linear(F.linear(x, down), up), alpha=self.scale).to(out.dtype)
        a = layer.lora_A[NAME]
        low = F.conv2d(x, down, None, a.stride, a.padding, a.dilation)
        return torch.add(out, F.conv2d(low, up), alpha=self.scale).to(out.dtype)

    def train(self, mode: bool) -> None:
        self.layer.lora_dropout[NAME].train(mode)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(down, up) of the whole ΔW, what was there at the start taken off."""
        down, up = (self.parameters()[suffix].detach() for suffix in (DOWN, UP))
        if self.start is not None:
            down, up = torch.cat([down, self.start[0]]), torch.cat([up, self.start[1]], 1)
        return down, up

    def tensors(self) -> dict[str, Tensor]:
        down, up = self.factors()
        return {UP: _copy(up), DOWN: _copy(down), ALPHA: torch.tensor(self.scale * down.shape[0])}

    def change(self) -> Tensor:
        down, up = (self.parameters()[suffix].detach().float().flatten(1) for suffix in (DOWN, UP))
        if self.start is None:
            return self.scale * (up @ down)
        down0, up0 = self.start[0].float().flatten(1), -self.start[1].float().flatten(1)
        return self.scale * ((up - up0) @ down + up0 @ (down - down0))

    def squared_norm(self) -> Tensor:
        """‖B A‖² is the sum of (BᵀB) ∘ (A Aᵀ): products of rank × rank, and ΔW is never made."""
        if self.start is not None:  # a difference of two, whose last digits would be lost
            return super().squared_norm()
        return self.squared_norms([self])

    def alike(self) -> tuple[Any, ...] | None:
        if self.start is not None or type(self).squared_norm is not LowRank.squared_norm:
            return None
        down, up = self.parameters().values()
        return down.shape, up.shape, down.device

    @staticmethod
    def squared_norms(layers: Sequence[LowRank]) -> Tensor:
        """Σ ‖ΔW‖² of layers whose factors have the same shapes: a few kernels for all of them."""
        factors = [layer.parameters() for layer in layers]
        a, b = (torch.stack([each[suffix].detach() for each in factors]).float().flatten(2) for suffix in (DOWN, UP))
        squares = ((b.mT @ b) * (a @ a.mT)).sum((1, 2)).clamp_min(0)
        scales = {layer.scale for layer in layers}
        if len(scales) == 1:
            return scales.pop() ** 2 * squares.sum()
        return (squares * torch.tensor([layer.scale**2 for layer in layers]).to(squares, non_blocking=True)).sum()

    def delta(self) -> LowRankDelta:
        """ΔW, float32 on the CPU."""
        down, up = (_copy(factor.float()) for factor in self.factors())
        return LowRankDelta(up, down, self.scale, "linear" if down.ndim == 2 else "conv")

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if self.start is not None and {UP, DOWN} <= set(tensors):
            rank = self.start[0].shape[0]
            down, up = tensors[DOWN], tensors[UP]
            if down.shape[0] == 2 * rank and up.shape[1] == 2 * rank:
                # Not found anew: another machine's decomposition has other last digits.
                self.start = down[rank:].to(self.start[0]), up[:, rank:].to(self.start[1])
                tensors = {**tensors, DOWN: down[:rank], UP: up[:, :rank]}
        super().load(tensors)


class Dora(LowRank):
    """W' = m · (W + ΔW)/‖W + ΔW‖, the norm a column (Liu et al. 2024, arXiv 2402.09353, eq. 5), beside peft's LoRA.

    A column is an input of the layer. peft takes the norm of each row in place of it; for that the host divides by
    another norm than it says, which its developers may mend any day, and older programs know columns alone. A factor
    of each column is one of each input: y = (W + ΔW)(g · x), with g = m/‖W + ΔW‖ and the norm held constant in the
    backward pass (§4.3).
    """

    zeros = frozenset({UP})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        inputs = layer.base_layer.weight.shape[1]
        layer.magnitude = nn.Parameter(torch.zeros(1, inputs, *(1 for _ in layer.base_layer.weight.shape[2:])))
        super().__init__(layer, plan, method)
        self.squares = torch.zeros(inputs)
        """(inputs,) ‖W‖² of each column."""

    def _slots(self) -> dict[str, Slot]:
        return {**super()._slots(), "dora_scale": (self.layer, "magnitude")}

    def begin(self, chance: torch.Generator, dtype: torch.dtype, device: torch.device | None) -> None:
        norm = _column_norms(base_weight(self.base))
        if self.base.weight.shape[0] == 1 or not bool(norm.all()):
            why = f"{int((norm == 0).sum())} of them are zero" if self.base.weight.shape[0] > 1 else "there is one row"
            raise ValueError(
                f"DoRA divides by the norm of each column of a weight, and {why}. Leave this layer out with a line in "
                f"layer_rules (rank=0), or choose the algorithm lora."
            )
        super().begin(chance, dtype, device)
        where = self.parameters()[UP].device
        self.squares = norm.square().to(where)
        self.put("dora_scale", norm.reshape(self.layer.magnitude.shape).to(where, dtype))
        self.layer.register_forward_pre_hook(self._scale_inputs)

    def drawn(self, suffix: str, shape: torch.Size, chance: torch.Generator) -> Tensor:
        return torch.zeros(shape) if suffix == "dora_scale" else super().drawn(suffix, shape, chance)

    def _scale_inputs(self, layer: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A hook before the layer, whichever forward it has."""
        if layer._disable_adapters:
            return None
        x: Tensor = inputs[0]
        gain = layer.magnitude.flatten() / self._norm()
        gain = gain if layer.magnitude.ndim == 2 else gain[:, None, None]
        # In the magnitude's own dtype: in bf16 a factor near 1 has steps of 0.4%.
        return ((x * gain).to(x.dtype), *inputs[1:])

    @torch.no_grad()
    def _norm(self) -> Tensor:
        """‖W + s B A‖ of each column, without making it: ‖w‖² + 2 s w·Ba + s² ‖Ba‖²."""
        down, up = (self.parameters()[suffix].flatten(1) for suffix in (DOWN, UP))
        weight: Tensor = self.base.weight.detach().to(up.device)
        if weight.ndim == 2:
            across = (up.T.to(weight.dtype) @ weight).to(self.squares)
            a, b = down.to(self.squares), up.to(self.squares)
            squares = 2 * self.scale * (across * a).sum(0) + self.scale**2 * ((b.T @ b @ a) * a).sum(0)
            return (self.squares + squares).clamp_min(0).sqrt() + torch.finfo(squares.dtype).eps
        change = (self.scale * (up @ down)).reshape(weight.shape).to(self.squares)
        return _column_norms(weight.to(self.squares) + change) + torch.finfo(change.dtype).eps

    def squared_norm(self) -> Tensor:
        return LayerAdapter.squared_norm(self)

    def change(self) -> Tensor:
        delta = super().change()
        weight = base_weight(self.base).to(delta.device)
        adapted = weight + delta.reshape(weight.shape)
        gain = self.layer.magnitude.detach().to(weight) / _column_norms(adapted).reshape(self.layer.magnitude.shape)
        change: Tensor = gain * adapted - weight
        return change.flatten(1)

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), "dora_scale": _copy(self.layer.magnitude)}


class LoHa(LayerAdapter):
    """ΔW = scale · (w1_a w1_b) ⊙ (w2_a w2_b) (Hyeon-Woo et al. 2022, arXiv 2108.06098, prop. 1), through peft."""

    zeros = frozenset({"hada_w2_b"})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        super().__init__(layer, plan, method)
        layer.scaling[NAME] = self.scale

    def _slots(self) -> dict[str, Slot]:
        return {
            name: (getattr(self.layer, name), NAME) for name in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        }

    def tensors(self) -> dict[str, Tensor]:
        return {**super().tensors(), ALPHA: torch.tensor(self.scale * self.plan.rank)}

    def change(self) -> Tensor:
        return _by_peft(self.layer)


class LoKr(LayerAdapter):
    """ΔW = scale · w1 ⊗ w2, w2 of low rank where that is smaller (Edalati et al. 2022, arXiv 2212.10650), through peft.
    Where it is not, files have no place for a scale, and it is 1."""

    zeros = frozenset({"lokr_w1"})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        super().__init__(layer, plan, method)
        if "lokr_w2" in self.slots:
            self.scale = 1.0
        layer.scaling[NAME] = self.scale
        layer._get_delta_activations = self._branch

    def _slots(self) -> dict[str, Slot]:
        names = ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
        return {name: (getattr(self.layer, name), NAME) for name in names if NAME in getattr(self.layer, name)}

    def tensors(self) -> dict[str, Tensor]:
        own = super().tensors()
        return own if "lokr_w2" in own else {**own, ALPHA: torch.tensor(self.scale * self.plan.rank)}

    def _branch(self, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(w1 ⊗ w2) x in place of peft's, which makes the product first: w2 on each part of x, then w1 across them.

        Output l·K + k is Σ w1[l, m] w2[k, n] x[m·N + n]: a third of the time. bf16 is met in bf16, as autocast would.
        """
        factors = self.parameters()
        dtype = x.dtype if x.dtype == torch.bfloat16 else factors["lokr_w1"].dtype
        small, *large = (factor.to(dtype) for factor in factors.values())  # w1, then w2 or its two
        base, x = self.base, x.to(dtype)
        if base.weight.ndim == 2:
            parts = torch.unflatten(x, -1, (small.shape[1], -1))
            for factor in reversed(large):
                parts = F.linear(parts, factor)
            outputs: Tensor = torch.einsum("...mk,lm->...lk", parts, small) * self.scale
            return outputs.flatten(-2)
        parts = torch.unflatten(x, 1, (small.shape[1], -1))
        images = parts.flatten(0, 1)
        kernel = large[-1].view(large[-1].shape[0], images.shape[1], *base.kernel_size)
        images = F.conv2d(images, kernel, None, base.stride, base.padding, base.dilation)
        if len(large) == 2:
            images = F.conv2d(images, large[0][:, :, None, None])
        parts = torch.unflatten(images, 0, parts.shape[:2])
        outputs = torch.einsum("bmkhw,lm->blkhw", parts, small) * self.scale
        return outputs.flatten(1, 2)

    def change(self) -> Tensor:
        return _by_peft(self.layer)


class OFT(LayerAdapter):
    """W' = R W, see :class:`.oft.OFTLayer`; the rank is the largest block. No alpha: the host takes it for a bound."""

    zeros = frozenset({"oft_blocks"})

    def _slots(self) -> dict[str, Slot]:
        return {"oft_blocks": (self.layer, "oft_blocks")}

    def change(self) -> Tensor:
        turn = self.layer.turn().detach().float()
        rows = self.base.weight.detach().to(turn).flatten(1).unflatten(0, turn.shape[:2])
        return torch.einsum("nbi,nbc->nci", rows, turn).flatten(0, 1)


KINDS: dict[str, type[LayerAdapter]] = {"lora": LowRank, "dora": Dora, "loha": LoHa, "lokr": LoKr, "oft": OFT}


def _kind(algorithm: str) -> type[LayerAdapter]:
    """Those that have modules of their own are built on this one."""
    if algorithm == "adaptive":
        from .adaptive_rank import AdaptiveLowRank

        return AdaptiveLowRank
    if algorithm == "adalora":
        from .adalora import AdaLora

        return AdaLora
    return KINDS[algorithm]


def inject(
    module: nn.Module, plans: Mapping[str, LayerPlan], method: Method, dropout: float
) -> dict[str, LayerAdapter]:
    """Put an adapter beside each layer (path in ``module`` -> its plan). Not yet begun: call ``begin`` of each."""
    if method.algorithm == "oft":
        for name, plan in plans.items():
            layer: Any = module.get_submodule(name)
            parent, _, child = name.rpartition(".")
            turned = OFTLayer(layer, block_size(layer.weight.shape[0], plan.rank))
            setattr(module.get_submodule(parent), child, turned)
    else:
        _inject_by_peft(module, plans, method, dropout)
    kind = _kind(method.algorithm)
    return {name: kind(module.get_submodule(name), plan, method) for name, plan in plans.items()}


def _inject_by_peft(module: nn.Module, plans: Mapping[str, LayerPlan], method: Method, dropout: float) -> None:
    # peft brings transformers with it: seconds that only those who train should pay.
    from peft import AdaLoraConfig, LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

    of_rank: dict[int, list[str]] = {}
    for name, plan in plans.items():
        layer: Any = module.get_submodule(name)
        rank = plan.rank
        if method.algorithm == "dora" or method.init in ("pissa", "olora"):
            check_base(layer, "DoRA" if method.algorithm == "dora" else f"The init {method.init}")
        if method.init in ("pissa", "olora"):  # there are no more principal components than that
            rank = min(rank, layer.weight.shape[0], layer.weight.shape[1:].numel())
        of_rank.setdefault(rank, []).append(re.escape(name))
    common: dict[str, Any] = {
        "r": next(iter(of_rank)),
        # Expressions and not lists, and anchored: peft takes a name for the end of others too.
        "rank_pattern": {f"^(?:{'|'.join(names)})": rank for rank, names in of_rank.items()},
        "target_modules": "|".join(re.escape(name) for name in plans),
    }
    config: Any
    if method.algorithm in ("lora", "dora", "adaptive"):
        config = LoraConfig(lora_dropout=dropout, bias="none", **common)
    elif method.algorithm == "adalora":
        if len(of_rank) > 1:
            raise ValueError(
                f"AdaLoRA begins with one rank in all layers, and layer_rules ask for {sorted(of_rank)}. Take rank=… "
                f"out of them (rank=0, which leaves layers out, may stay)."
            )
        # The schedule is adalora.py's; peft wants to know of one.
        config = AdaLoraConfig(
            init_r=common["r"], target_r=1, total_step=1, lora_dropout=dropout, target_modules=common["target_modules"]
        )
    elif method.algorithm == "loha":
        config = LoHaConfig(**common)
    else:
        config = LoKrConfig(decompose_factor=method.lokr_factor, **common)
    inject_adapter_in_model(config, module, adapter_name=NAME)


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


def principal(weight: Tensor, rank: int, chance: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(U, S, Vᵀ) of the ``rank`` largest singular values of a matrix, by a randomised range finder.

    Halko, Martinsson and Tropp 2011 (SIAM Review 53, alg. 4.4) with four power iterations and twice as many columns as
    wanted; exact where that is the whole matrix. A full decomposition of a large model takes an hour.
    """
    columns = min(2 * rank + 8, *weight.shape)
    basis = torch.randn(weight.shape[1], columns, generator=chance).to(weight)
    for _ in range(5):
        basis = torch.linalg.qr(weight @ basis)[0]
        last = basis
        basis = torch.linalg.qr(weight.mT @ basis)[0]
    left, values, right = torch.linalg.svd(last.mT @ weight, full_matrices=False)
    return (last @ left)[:, :rank], values[:rank], right[:rank]


def _column_norms(weight: Tensor) -> Tensor:
    """(inputs,) the norm of what each input of a Linear or Conv2d is multiplied with."""
    norms: Tensor = torch.linalg.vector_norm(weight.transpose(0, 1).flatten(1), dim=1)
    return norms


def _by_peft(layer: Any) -> Tensor:
    delta: Tensor = layer.get_delta_weight(NAME)
    return delta.detach().float().flatten(1)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone().contiguous()
