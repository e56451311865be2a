"""LoRA²: each layer's rank is learnt with it (Shenaj, Errica and Carta 2026, arXiv 2603.21884).

The paper's (abstract and method as its authors and reviews of it give them; their repository holds no code):

- ΔW_l = B_l Λ_l A_l, Λ_l = diag(f(1; ν_l) … f(D_l; ν_l)), f a discretised exponential, which orders a layer's
  components by importance; one ν_l a layer, learnt by backpropagation; D_l follows from ν_l, and the factors are
  resized as it changes;
- three losses: reconstruction, a regulariser of the rank, and the entropy of cross-attention. Without the second,
  ranks grow without bound.

From the method it builds on (Errica et al. 2025, arXiv 2501.15889): ν = softplus of what is trained; D is where the
distribution function passes a quantile; weights are drawn wider where their *inputs* are weighted, with the standard
deviation √2/√Σf².

Inferred, for neither text states it: q = 0.9; ν_target = −ln(1 − q)/target rank; the regulariser is
λ Σ_l |ν_l − ν_target|, λ = 1e-4, which is what third-party attempts agree on.

Chosen here:

- *The count from 0, and the cut inside the last interval*, see :mod:`.exponential`. Counting from 1 would only
  multiply all of f by e^{−ν}, so that the scale of ΔW moves with the rank. Cut at whole intervals, Σf jumps by up to
  f(D − 1) whenever D changes, autograd sees none of it, and between two jumps Σf rises with ν, which the loss uses to
  learn a scale and not a rank. Cut at the quantile, Σf = q always: ν moves weight between components and nothing
  else, and the gradient of ν is that of the discrete model.
- *The scale* alpha/q · f, whose sum over the components is alpha, as it is in a LoRA of any rank with alpha/rank each.
- *The init.* With B = 0, as in any LoRA, ΔW x is zero at the start whatever A is, so its variance says something only
  after the first step. The variance of B Λ (A x) is Var(B) Σf² Var(A x): the weighted dimension is B's input, not A's,
  whose input is the layer's own. √2/√Σf² would be the width of B, if B were drawn. Adam moves each number of B by its
  rate η against its gradient, so a first step lowers the loss by η Σ_x (alpha/q) f_x |∂L/∂(f_x B_x)|, which goes with
  Σf = q and the width of A, and not with the rank. (ΔW x itself is shorter with a higher rank, as √Σf², because less of
  it is beside the gradient; so it is in any LoRA of alpha/rank.) √2/√Σf² on A would make layers that begin with a high
  rank learn faster, by √rank. So A begins as in any LoRA. With SGD the first step goes with Σf², as it goes with 1/rank
  in any LoRA.
- *Growing*: a new component has a fresh row of A from a stream of its own and a zero column of B, so ΔW is the same.
  Its moments begin as zeros. Adam's bias correction is that of an old parameter, so B's new column makes some longer
  steps (about twice η in a run of hundreds), whose f is near 0; with the moments of the component before it, which
  hardly fade, it learnt several times more slowly. *Shrinking* drops components whose f is exactly 0: ΔW is the same.
  (A refactorisation by SVD would keep ΔW no better, and lose the optimizer's state.)
- *ν's own optimizer*: Adam with β = (0.9, 0.99) and no weight decay, whose rate ``rank_lr`` follows the schedule.
  ν stays between the values of rank 1 and of full rank, in float64 on the CPU. Its gradient is not clipped with the
  factors' and does not count in their norm.
- *The file*: √(alpha/q · f) goes into each factor, so the file is an ordinary LoRA whose alpha is its rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..lora import spectrum, svd
from ..lora.suffixes import DOWN, UP
from .adapters import NAME, LayerAdapter, Method
from .branch import weighted
from .config import TrainingConfig
from .exponential import QUANTILE, inverse_softplus, nu_of_rank, rank_of_nu, softplus, weights
from .layer_rules import LayerPlan
from .lora import Adapters
from .low_rank import LowRank
from .randomness import generator
from .ranks import LayerRank, check_names
from .resized import Resized

_NU = "ranks.nu"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class AdaptiveLowRank(LowRank):
    """ΔW = up · diag(weights) · down; the rank is what it begins with."""

    def __init__(self, layer: Any, plan: LayerPlan, method: Method) -> None:
        super().__init__(layer, plan, method)
        self.energy = method.export_energy
        self.limit = min(layer.base_layer.weight.shape[0], layer.base_layer.weight.shape[1:].numel())
        """The rank of the layer's own weight."""
        self.strength = self.scale * plan.rank / QUANTILE
        self.scale = layer.scaling[NAME] = 1.0
        self.weights = torch.zeros(0)
        """(rank,) strength · f, a leaf of its own in each step; set by :class:`AdaptiveRanks`."""
        layer.component_weights = lambda: self.weights
        layer.lora_A[NAME].register_forward_hook(lambda _module, _inputs, out: weighted(out, self.weights))

    @property
    def rank(self) -> int:
        """Components there are now."""
        return int(self.parameters()[DOWN].shape[0])

    def begin(self, chance: torch.Generator, dtype: torch.dtype, device: torch.device | None) -> None:
        super().begin(chance, dtype, device)
        rank = min(self.plan.rank, self.limit)
        self.resize(rank, chance)  # never grows here
        (start,) = weights(torch.tensor([nu_of_rank(rank)], dtype=torch.float64), [rank])
        self.weigh(start)

    def weigh(self, f: Tensor) -> None:
        """Use these weights; they collect gradients until the next ones."""
        down = self.parameters()[DOWN]
        self.weights = (self.strength * f.detach()).to(down.device, down.dtype).requires_grad_()

    def resize(self, rank: int, chance: torch.Generator) -> list[Resized]:
        """Drop the last components, or add some with A from ``chance`` and B = 0. :meth:`weigh` comes next."""
        now = self.rank
        if rank == now:
            return []
        found = []
        for suffix, dim in ((DOWN, 0), (UP, 1)):
            old = self.parameters()[suffix]
            shape = list(old.shape)
            shape[dim] = max(0, rank - now)
            fresh = self.drawn(suffix, torch.Size(shape), chance) if suffix == DOWN else torch.zeros(shape)
            self.put(suffix, torch.cat([old.detach(), fresh.to(old)], dim).narrow(dim, 0, rank).contiguous())
            found.append(Resized(old, self.parameters()[suffix], dim))
        return found

    def restore(self, down: Tensor, up: Tensor) -> None:
        """Put in factors of any rank, to the bit."""
        for suffix, value, dim in ((DOWN, down, 0), (UP, up, 1)):
            old = self.parameters()[suffix]
            expected = [size for place, size in enumerate(old.shape) if place != dim]
            if [size for place, size in enumerate(value.shape) if place != dim] != expected or value.dtype != old.dtype:
                raise ValueError(
                    f"{suffix} is {tuple(value.shape)} where this run's is {tuple(old.shape)}. Use the same model and "
                    f"targets, or start anew."
                )
            self.put(suffix, value.to(old.device).clone())

    def folded(self) -> tuple[Tensor, Tensor]:
        """(down, up) whose product is ΔW, all components, in float32 or better."""
        down, up = (self.parameters()[suffix].detach() for suffix in (DOWN, UP))
        root = self.weights.detach().to(torch.promote_types(down.dtype, torch.float32)).sqrt()
        return down * root.reshape(-1, *(1 for _ in down.shape[1:])), up * root.reshape(
            1, -1, *(1 for _ in up.shape[2:])
        )

    def factors(self) -> tuple[Tensor, Tensor]:
        """(down, up) of the file: all components, or so many directions of ΔW that ``energy`` of ‖ΔW‖² is in them."""
        down, up = self.folded()
        if self.energy >= 1:
            return down, up
        whole = svd.of_pair(up, down, 1.0)
        rank = spectrum.smallest_rank(whole.values, 1 - self.energy)
        if rank >= down.shape[0]:
            return down, up
        b, a = whole.factors(rank)
        return a.to(down).reshape(rank, *down.shape[1:]), b.to(up).reshape(up.shape[0], rank, *up.shape[2:])

    def change(self) -> Tensor:
        down, up = self.folded()
        return up.float().flatten(1) @ down.float().flatten(1)

    def squared_norm(self) -> Tensor:
        a, b = (factor.float().flatten(1) for factor in self.folded())
        return ((b.T @ b) * (a @ a.T)).sum().clamp_min(0)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        raise ValueError("the file holds B Λ A, out of which the factors cannot be had; AdaptiveRanks.load has them")


class AdaptiveRanks:
    """ν of all layers: how it learns, and what follows from it."""

    def __init__(
        self, adapters: Adapters, config: TrainingConfig, entropy: Callable[[], Tensor | None] | None = None
    ) -> None:
        self.layers = adapters.of_kind(AdaptiveLowRank)
        self.config, self.entropy = config, entropy
        first = [inverse_softplus(nu_of_rank(layer.rank)) for layer in self.layers.values()]
        self.raw = nn.Parameter(torch.tensor(first, dtype=torch.float64))
        limits = [layer.limit for layer in self.layers.values()]
        self.least = torch.tensor([inverse_softplus(nu_of_rank(limit)) for limit in limits], dtype=torch.float64)
        self.most = torch.full_like(self.least, inverse_softplus(nu_of_rank(1)))
        self.target = nu_of_rank(config.kept_rank)
        self.optimizer = torch.optim.Adam([self.raw], lr=config.rank_lr, betas=(0.9, 0.99))
        self._refresh()

    def _refresh(self) -> None:
        """New leaves in the layers; the graph from ν to them stays here."""
        self.nu = softplus(self.raw)
        self.f = weights(self.nu, [layer.rank for layer in self.layers.values()])
        for layer, f in zip(self.layers.values(), self.f, strict=True):
            layer.weigh(f)

    def penalty(self) -> Tensor | None:
        """The entropy of cross-attention, where it is asked for. The regulariser of the rank is :meth:`step`'s."""
        entropy = self.entropy() if self.entropy is not None else None
        return None if entropy is None else self.config.entropy_weight * entropy

    def gradient(self, unscale: float) -> None:
        """From the layers' weights, and the regulariser, back to ν: once a step, however many batches it has."""
        layers = list(self.layers.values())
        pulled = [
            torch.zeros_like(f) if layer.weights.grad is None else layer.weights.grad.to(f) * (layer.strength * unscale)
            for layer, f in zip(layers, self.f, strict=True)
        ]
        regulariser = self.config.rank_weight * (self.nu - self.target).abs().sum()
        self.raw.grad = None
        torch.autograd.backward([*self.f, regulariser], [*pulled, None])

    @torch.no_grad()
    def step(self, done: int, rate: float, unscale: float) -> Sequence[Resized]:
        with torch.enable_grad():
            self.gradient(unscale)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rank_lr * rate
        self.optimizer.step()
        self.raw.clamp_(self.least, self.most)
        found: list[Resized] = []
        for (name, layer), nu in zip(self.layers.items(), softplus(self.raw).tolist(), strict=True):
            rank = min(rank_of_nu(nu), layer.limit)
            if rank != layer.rank:
                found += layer.resize(rank, generator(self.config.seed, "rank", name, done))
        with torch.enable_grad():
            self._refresh()
        return found

    def counts(self) -> dict[str, int]:
        return {name: layer.rank for name, layer in self.layers.items()}

    def ranks(self) -> dict[str, LayerRank]:
        return {
            name: LayerRank(layer.rank, int(layer.factors()[0].shape[0]), float(layer.squared_norm().sqrt()), nu)
            for (name, layer), nu in zip(self.layers.items(), self.nu.tolist(), strict=True)
        }

    def tensors(self) -> dict[str, Tensor]:
        zeros = {"step": torch.zeros(()), **{key: torch.zeros_like(self.raw) for key in _MOMENTS[1:]}}
        state = self.optimizer.state.get(self.raw) or zeros
        found = {_NU: self.raw.detach().clone(), **{f"{_NU}.{key}": state[key].detach().clone() for key in _MOMENTS}}
        for name, layer in self.layers.items():
            found |= {f"{name}.{suffix}": value for suffix, value in LayerAdapter.tensors(layer).items()}
        return found

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        own = [_NU, *(f"{_NU}.{key}" for key in _MOMENTS)]
        check_names(tensors, [*own, *(f"{name}.{suffix}" for name in self.layers for suffix in (DOWN, UP))])
        if tensors[_NU].shape != self.raw.shape:
            raise ValueError("The checkpoint's ranks are of another count of layers. Start anew.")
        for name, layer in self.layers.items():
            layer.restore(tensors[f"{name}.{DOWN}"], tensors[f"{name}.{UP}"])
        self.raw.copy_(tensors[_NU])
        self.optimizer.state[self.raw] = {key: tensors[f"{_NU}.{key}"].clone() for key in _MOMENTS}
        with torch.enable_grad():
            self._refresh()
