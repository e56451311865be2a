"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512) through peft: a budget of ranks, cut where they matter least.

ΔW = alpha/r · B diag(E) A (eq. 3, with P = B, Λ = E and Q = A), all layers beginning with rank r. A component's
importance is that of its E and the mean of its row's and column's, each number's being its smoothed sensitivity
|w ∂L/∂w| times its smoothed uncertainty (eq. 8 to 10). From step ``tinit`` on, the budget falls along a cubic to
target rank × layers (eq. 12); the E of components that are not within it are set to 0, over all layers at once. In
the last ``tfinal`` steps the choice stays. ‖AAᵀ − I‖ + ‖BᵀB − I‖ is added to the loss (eq. 4).

peft's are the layers, the importance and the choice; its model wrapper, which would add the last term and count the
steps, wants a model of its own. The shares of the run before and after the cut are chosen here: a tenth, and three
tenths; the authors' vary by task about as much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..lora.suffixes import ALPHA, DOWN, UP
from .adapters import NAME, LayerAdapter, Method
from .config import TrainingConfig
from .layer_rules import LayerPlan
from .lora import Adapters
from .low_rank import LowRank
from .ranks import LayerRank, check_names
from .resized import Resized

BEFORE, AFTER = 0.1, 0.3
"""Shares of the run with all ranks, and with the last choice of them."""
CHOICES = 100
"""How often in a run the choice is made."""
ORTHOGONAL = 0.5
"""Weight of the orthogonality, peft's default."""
_STD = 0.02
_SCORES = ("exp_avg_ipt", "exp_avg_unc")


class AdaLora(LowRank):
    """ΔW = scale · B diag(E) A, beside peft's layer. Files have E in the factors, and no component of E = 0."""

    zeros = frozenset({"lora_E"})

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        super().__init__(layer, plan, method)
        layer.scaling[NAME] = plan.alpha
        self.strength = plan.alpha / (float(layer.ranknum[NAME]) + 1e-5)  # as peft divides
        self.scale = 1.0

    def _slots(self) -> dict[str, tuple[Any, str]]:
        return {name: (getattr(self.layer, name), NAME) for name in ("lora_A", "lora_E", "lora_B")}

    def drawn(self, suffix: str, shape: torch.Size, chance: torch.Generator) -> Tensor:
        return torch.empty(shape).normal_(std=_STD, generator=chance)

    @property
    def rank(self) -> int:
        """Components that do something."""
        return int((self.parameters()["lora_E"] != 0).sum())

    def factors(self) -> tuple[Tensor, Tensor]:
        """(down, up) of the components whose E is not 0, at least of one."""
        a, e, b = (parameter.detach() for parameter in self.parameters().values())
        kept = e[:, 0] != 0
        if not bool(kept.any()):
            kept = torch.arange(len(kept), device=e.device) == 0
        e = e[kept, 0] * self.strength
        root = e.abs().sqrt()
        down, up = a[kept] * root[:, None], b[:, kept] * (root * e.sign())
        if self.base.weight.ndim == 4:
            down, up = down.reshape(-1, *self.base.weight.shape[1:]), up[:, :, None, None]
        return down, up

    def tensors(self) -> dict[str, Tensor]:
        down, up = (factor.cpu().clone().contiguous() for factor in self.factors())
        return {UP: up, DOWN: down, ALPHA: torch.tensor(float(len(down)))}

    def change(self) -> Tensor:
        down, up = (factor.float().flatten(1) for factor in self.factors())
        return up @ down

    def squared_norm(self) -> Tensor:
        return LayerAdapter.squared_norm(self)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        LayerAdapter.load(self, tensors)

    def orthogonality(self) -> Tensor:
        """‖AAᵀ − I‖ + ‖BᵀB − I‖, Frobenius."""
        a, _, b = self.parameters().values()
        one = torch.eye(a.shape[0], device=a.device, dtype=a.dtype)
        found: Tensor = torch.linalg.matrix_norm(a @ a.T - one) + torch.linalg.matrix_norm(b.T @ b - one)
        return found


class AllocatedRanks:
    """peft's allocator over the layers of all modules."""

    def __init__(self, adapters: Adapters, config: TrainingConfig) -> None:
        from peft import AdaLoraConfig
        from peft.tuners.adalora.layer import RankAllocator

        self.layers = adapters.of_kind(AdaLora)
        # By number, for peft searches names for those of its parameters.
        self.module = nn.ModuleDict({str(number): layer.layer for number, layer in enumerate(self.layers.values())})
        self.last = config.steps - int(AFTER * config.steps)
        """The step of the last choice."""
        schedule = AdaLoraConfig(
            init_r=config.rank,
            target_r=config.kept_rank,
            tinit=int(BEFORE * config.steps),
            tfinal=int(AFTER * config.steps),
            deltaT=max(1, config.steps // CHOICES),
            total_step=config.steps,
        )
        self.allocator: Any = RankAllocator(self.module, schedule, NAME)  # type: ignore[no-untyped-call]
        self.pattern: dict[str, list[bool]] = {
            f"{number}.lora_E.{NAME}": [True] * config.rank for number in range(len(self.layers))
        }

    def penalty(self) -> Tensor | None:
        """The orthogonality, the mean of all factors'."""
        terms = [layer.orthogonality() for layer in self.layers.values()]
        return ORTHOGONAL * torch.stack([term.to(terms[0].device) for term in terms]).sum() / (2 * len(terms))

    @torch.no_grad()
    def step(self, done: int, rate: float, unscale: float) -> Sequence[Resized]:
        if done > self.last:
            self.allocator.mask_using_rank_pattern(self.module, self.pattern)
            return ()
        for layer in self.layers.values():
            for parameter in layer.parameters().values():
                if parameter.grad is None:  # of a layer that this batch did not use
                    parameter.grad = torch.zeros_like(parameter)
        if done == self.last and not self.allocator.exp_avg_ipt:  # peft does not bring it up to date there
            self.allocator.update_ipt(self.module)
        _, pattern = self.allocator.update_and_allocate(self.module, done, force_mask=done == self.last)
        self.pattern = pattern or self.pattern
        if done == self.last:
            self.allocator.reset_ipt()
        return ()

    def counts(self) -> dict[str, int]:
        return {name: sum(self.pattern[f"{number}.lora_E.{NAME}"]) for number, name in enumerate(self.layers)}

    def ranks(self) -> dict[str, LayerRank]:
        return {
            name: LayerRank(layer.rank, int(layer.factors()[0].shape[0]), float(layer.squared_norm().sqrt()))
            for name, layer in self.layers.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, (name, layer) in enumerate(self.layers.items()):
            pattern = torch.tensor(self.pattern[f"{number}.lora_E.{NAME}"], dtype=torch.uint8)
            found |= {f"{name}.pattern": pattern}
            for suffix, parameter in LayerAdapter.tensors(layer).items():
                found[f"{name}.{suffix}"] = parameter
                for score in _SCORES:
                    there = getattr(self.allocator, score).get(f"{number}.{suffix}.{NAME}")
                    if there is not None:
                        found[f"{name}.{suffix}.{score}"] = there.detach().cpu().clone()
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        expected: list[str] = []
        scored = any(name.endswith(_SCORES) for name in tensors)
        self.allocator.reset_ipt()
        for number, (name, layer) in enumerate(self.layers.items()):
            own = {suffix: f"{name}.{suffix}" for suffix in layer.slots}
            scores = {score: {suffix: f"{key}.{score}" for suffix, key in own.items()} for score in _SCORES}
            expected += [f"{name}.pattern", *own.values()]
            expected += [key for keys in scores.values() for key in keys.values() if scored]
            LayerAdapter.load(layer, {suffix: tensors[key] for suffix, key in own.items() if key in tensors})
            for score, keys in scores.items():
                for suffix, key in keys.items():
                    if key in tensors:
                        where = layer.parameters()[suffix].device
                        getattr(self.allocator, score)[f"{number}.{suffix}.{NAME}"] = tensors[key].to(where).clone()
                        self.allocator.ipt[f"{number}.{suffix}.{NAME}"] = torch.zeros(0)  # made anew before it is read
            if f"{name}.pattern" in tensors:
                self.pattern[f"{number}.lora_E.{NAME}"] = tensors[f"{name}.pattern"].bool().tolist()
        check_names(tensors, expected)
