"""The optimizer Lion (Chen et al. 2023, arXiv 2302.06675, alg. 2): the sign of an interpolated momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer


class Lion(Optimizer):
    """θ ← θ − η (sign(β₁ m + (1 − β₁) g) + λ θ), then m ← β₂ m + (1 − β₂) g.

    One state a parameter where Adam has two. Every entry moves by η at each step, so that the usual learning rate is
    a third to a tenth of AdamW's, and the weight decay as many times larger (§5 of the paper).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-5,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            rate, (beta1, beta2) = group["lr"], group["betas"]
            there = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not there:
                continue
            gradients = [parameter.grad for parameter in there]
            for parameter in there:
                if "exp_avg" not in self.state[parameter]:
                    self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            momenta = [self.state[parameter]["exp_avg"] for parameter in there]
            updates = torch._foreach_lerp(momenta, gradients, 1 - beta1)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(there, 1 - rate * group["weight_decay"])
            torch._foreach_add_(there, updates, alpha=-rate)
            torch._foreach_lerp_(momenta, gradients, 1 - beta2)
        return loss
