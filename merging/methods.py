"""The methods by name: what each does with one layer, and which options it uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .breadcrumbs import breadcrumbs
from .dare import dare, dare_ties
from .della import della
from .karcher import karcher
from .linear import linear
from .model_stock import model_stock
from .options import MergeOptions
from .slerp import slerp
from .ties import ties
from .trim import magnitude_prune

Weigh = Callable[[Tensor, Tensor], Tensor]
"""(gram (n, n), weights (n,)) -> coefficients (n,): the merge is Σ cᵢΔWᵢ, which a concatenation holds exactly."""
Stacked = Callable[[Iterable[Tensor], MergeOptions, Sequence[torch.Generator]], Tensor]
"""(each wᵢΔWᵢ, options, a generator for each) -> (…): works on single entries, so that ΔW is made, one at a time."""


@dataclass(frozen=True)
class Method:
    """One of weigh and stacked.

    uses: the fields of MergeOptions that it looks at. shared_basis: stacked works on the ΣVᵢᵀ of KnOTS in place of the
    ΔWᵢ. keeps_factors: exact output is the concatenation as it is; else singular values decide. whole_model: whether
    density can count over the whole model. only: how many LoRAs it takes, 0 for any.
    """

    weigh: Weigh | None = None
    stacked: Stacked | None = None
    uses: tuple[str, ...] = ()
    shared_basis: bool = False
    keeps_factors: bool = True
    whole_model: bool = False
    only: int = 0

    @property
    def needs_gram(self) -> bool:
        """Whether the coefficients depend on the ΔW."""
        return self.weigh is not None and self.weigh is not linear


def _ties(deltas: Iterable[Tensor], options: MergeOptions, _: Sequence[torch.Generator]) -> Tensor:
    return ties(deltas, options.density, options.majority)


def _magnitude(deltas: Iterable[Tensor], options: MergeOptions, _: Sequence[torch.Generator]) -> Tensor:
    return magnitude_prune(deltas, options.density)


def _breadcrumbs(deltas: Iterable[Tensor], options: MergeOptions, _: Sequence[torch.Generator]) -> Tensor:
    gamma = 1 - options.outliers
    return breadcrumbs(deltas, max(0.0, gamma - options.density), gamma)


def _dare(deltas: Iterable[Tensor], options: MergeOptions, chances: Sequence[torch.Generator]) -> Tensor:
    return dare(deltas, options.density, chances)


def _dare_ties(deltas: Iterable[Tensor], options: MergeOptions, chances: Sequence[torch.Generator]) -> Tensor:
    return dare_ties(deltas, options.density, options.majority, chances)


def _della(deltas: Iterable[Tensor], options: MergeOptions, chances: Sequence[torch.Generator]) -> Tensor:
    return della(deltas, options.density, options.epsilon, options.majority, chances)


METHODS: dict[str, Method] = {
    "linear": Method(linear),
    "svd": Method(linear, keeps_factors=False),  # the same ΔW; exact output has its true rank in place of Σr
    "ties": Method(stacked=_ties, uses=("density", "majority", "scope"), whole_model=True),
    "dare": Method(stacked=_dare, uses=("density", "seed")),
    "dare-ties": Method(stacked=_dare_ties, uses=("density", "majority", "seed")),
    "della": Method(stacked=_della, uses=("density", "epsilon", "majority", "seed")),
    "breadcrumbs": Method(stacked=_breadcrumbs, uses=("density", "outliers")),
    "magnitude": Method(stacked=_magnitude, uses=("density", "scope"), whole_model=True),
    "slerp": Method(slerp, only=2),
    "karcher": Method(karcher),
    "knots-ties": Method(stacked=_ties, uses=("density", "majority"), shared_basis=True),
    "knots-dare-ties": Method(stacked=_dare_ties, uses=("density", "majority", "seed"), shared_basis=True),
    "model stock": Method(model_stock),
}


def method_of(options: MergeOptions, count: int) -> Method:
    """The method, for that many LoRAs. Raises ValueError where there is none, or options or count do not suit it."""
    method = METHODS.get(options.method)
    if method is None:
        raise ValueError(f"unknown method {options.method!r}; expected one of {', '.join(METHODS)}")
    if method.only and count != method.only:
        raise ValueError(f"{options.method} merges {method.only} LoRAs, and was given {count}; use karcher or linear")
    if options.scope == "model" and not method.whole_model:
        able = ", ".join(name for name, one in METHODS.items() if one.whole_model)
        raise ValueError(f"{options.method} takes its density in each layer; over the whole model only {able} do")
    return method
