"""bf16 copies of all fp32 factors of a model, made at once a forward pass: a few kernels in place of two a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .recompute import replaced_forward

Copies = tuple[Tensor, Tensor, float]
"""(down, up, what is left to scale with)."""


class _Cast(torch.autograd.Function):
    """(scale · down, up) of each layer in bf16; the gradients in the factors' own dtype."""

    @staticmethod
    def forward(ctx: Any, scales: Sequence[float], *factors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.scales, ctx.dtypes = scales, [factor.dtype for factor in factors]
        low = [torch.empty(factor.shape, dtype=torch.bfloat16, device=factor.device) for factor in factors]
        whole = list(factors)
        if any(scale != 1.0 for scale in scales):
            whole[::2] = torch._foreach_mul(whole[::2], list(scales))
        torch._foreach_copy_(low, whole)
        return tuple(low)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        there = [gradient for gradient in gradients if gradient is not None]
        dtypes = [dtype for dtype, gradient in zip(ctx.dtypes, gradients, strict=True) if gradient is not None]
        whole = [torch.empty_like(g, dtype=dtype) for g, dtype in zip(there, dtypes, strict=True)]
        if whole:
            torch._foreach_copy_(whole, there)
        rest = iter(whole)
        found = [None if gradient is None else next(rest) for gradient in gradients]
        downs = [(g, scale) for g, scale in zip(found[::2], ctx.scales, strict=True) if g is not None and scale != 1.0]
        if downs:
            torch._foreach_mul_([gradient for gradient, _ in downs], [scale for _, scale in downs])
        return None, *found


class LowCopies:
    """The copies of one model. Gradients flow through them to the factors.

    They are made when the first layer asks for its own in a forward pass of the model with gradients, and serve until
    the next one, its backward pass (and what that computes again) included. Whoever asks at another time gets a cast
    of his own: between two forward passes the factors may have moved.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[Any, Any, float]] = []
        self._made: tuple[Tensor, ...] = ()
        self._inside = False

    def of(self, down: Any, up: Any, scale: float) -> Callable[[], Copies]:
        """What gives a layer its copies; scale · up · down is its change."""
        index = 2 * len(self._layers)
        self._layers.append((down, up, scale))

        def copies() -> Copies:
            if self._inside and not self._made and torch.is_grad_enabled():
                self._make()
            usable = self._made and torch.is_grad_enabled()
            if usable and (self._inside or torch._C._current_graph_task_id() != -1):
                return self._made[index], self._made[index + 1], 1.0
            a, b = down.weight, up.weight
            return (a if scale == 1.0 else a * scale).to(torch.bfloat16), b.to(torch.bfloat16), 1.0

        return copies

    @contextmanager
    def during(self, module: nn.Module) -> Iterator[None]:
        """Notice the forward passes of this module, for as long as the context lasts."""
        forward = module.forward

        def run(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return forward(*args, **kwargs)
            self._made, self._inside = (), True
            try:
                return forward(*args, **kwargs)
            finally:
                self._inside = False

        with replaced_forward(module, run):
            try:
                yield
            finally:
                self._made = ()

    def _make(self) -> None:
        factors = [factor for down, up, _ in self._layers for factor in (down.weight, up.weight)]
        scales = tuple(scale for *_, scale in self._layers)
        self._made = _Cast.apply(scales, *factors)  # type: ignore[no-untyped-call]
