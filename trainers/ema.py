"""A moving average of what is trained, which is calmer than the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .resized import Resized


def decay_at(step: int, decay: float) -> float:
    """min(decay, (1 + t)/(10 + t)) after update t, counted from 1: a young average must not remember the beginning."""
    return min(decay, (1 + step) / (10 + step))


class MovingAverage:
    """The exponential moving average of parameters, a ← d a + (1 − d) p, in float32 whatever they are."""

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self._average = [parameter.detach().float().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters as they are after update ``step``, counted from 1."""
        now = [parameter.detach().float() for parameter in self._parameters]
        torch._foreach_lerp_(self._average, now, 1 - decay_at(step, self._decay))

    def resize(self, changes: Sequence[Resized]) -> None:
        """Go on with parameters of other sizes; the average of what is new is what it is."""
        places = {parameter: place for place, parameter in enumerate(self._parameters)}
        for change in changes:

            def end(_: Tensor, count: int, dim: int, new: Tensor = change.new) -> Tensor:
                return new.detach().float().narrow(dim, new.shape[dim] - count, count)

            place = places[change.old]
            self._parameters[place] = change.new
            self._average[place] = change.fitted(self._average[place], end)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The parameters are the average inside, and to the bit what they were afterwards."""
        with torch.no_grad():
            trained = [parameter.detach().clone() for parameter in self._parameters]
            for parameter, average in zip(self._parameters, self._average, strict=True):
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, before in zip(self._parameters, trained, strict=True):
                    parameter.copy_(before)

    def tensors(self) -> dict[str, Tensor]:
        """CPU copies of the average and of the parameters themselves, by place; exact to resume from."""
        saved = {f"average.{place}": tensor.cpu().clone() for place, tensor in enumerate(self._average)}
        return saved | trained_tensors(self._parameters)

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back the average that :meth:`tensors` took."""
        for place, average in enumerate(self._average):
            average.copy_(tensors[f"average.{place}"])


def trained_tensors(parameters: Sequence[nn.Parameter]) -> dict[str, Tensor]:
    """CPU copies of what is trained, where a checkpoint's LoRA is something else than that."""
    return {f"trained.{place}": parameter.detach().cpu().clone() for place, parameter in enumerate(parameters)}


@torch.no_grad()
def load_trained(parameters: Sequence[nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    """Put back the parameters that :meth:`MovingAverage.tensors` took beside their average.

    Raises:
        ValueError: they are of other parameters.
    """
    there = [name for name in tensors if name.startswith("trained.")]
    if len(there) != len(parameters) or any(
        tensors[f"trained.{place}"].shape != parameter.shape for place, parameter in enumerate(parameters)
    ):
        raise ValueError("The checkpoint's averaged adapters are of another model, rank or targets than this run's.")
    for place, parameter in enumerate(parameters):
        parameter.copy_(tensors[f"trained.{place}"])
