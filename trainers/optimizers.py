"""Optimizers by name, the fastest implementation that this torch has, and their state as plain tensors."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

log = logging.getLogger(__name__)


def _adamw(parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    try:
        # One kernel for all layers; on the CPU too, where hundreds of small tensors otherwise cost more in Python
        # than in arithmetic.
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
    except (RuntimeError, TypeError) as why:
        log.debug("no fused AdamW here (%s)", why)
        return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, foreach=True)


def _adafactor(parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    if not hasattr(torch.optim, "Adafactor"):
        raise ValueError("The optimizer 'adafactor' needs torch 2.5 or newer; choose 'adamw'.")
    return torch.optim.Adafactor(parameters, lr=learning_rate, weight_decay=weight_decay, foreach=True)


def _sgd(parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=weight_decay, foreach=True)


BUILDERS = {"adamw": _adamw, "adafactor": _adafactor, "sgd": _sgd}


def build(name: str, parameters: Sequence[nn.Parameter], learning_rate: float, weight_decay: float) -> Optimizer:
    """An optimizer over ``parameters``, in one group.

    Raises:
        ValueError: unknown name.
    """
    if name not in BUILDERS:
        raise ValueError(f"Unknown optimizer {name!r}; choose one of {', '.join(BUILDERS)}.")
    return BUILDERS[name](parameters, learning_rate, weight_decay)


def set_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's whole state as ``"<index of parameter>.<key>"`` -> CPU tensor; None values are left out."""
    return {
        f"{index}.{key}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
        if value is not None
    }


def load_state_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`state_tensors` took, to the bit, on each parameter's device."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
