"""Puts adapters beside a model's layers, through peft where it has the algorithm."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from .adapters import NAME, LayerAdapter, Method, check_base
from .layer_rules import LayerPlan
from .low_rank import Dora, LowRank
from .oft import OFTLayer, block_size
from .products import OFT, LoHa, LoKr

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
