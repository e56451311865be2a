"""Optimizers by name, the fastest implementation that this torch has, and their state as plain tensors."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .lion import Lion
from .resized import Resized

log = logging.getLogger(__name__)

Groups = Sequence[dict[str, Any]]

_PROGRESS = ("d", "d_max", "d_numerator", "d_denom", "d_hat", "k", "weight_sum", "lr_max", "scheduled_lr")
"""What optimizers keep a group and not a parameter: Prodigy its estimate, schedule-free the weight of its average."""

_AS_PARAMETER = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "z"})
"""What optimizers keep for each number of a parameter."""

_PYTHON: dict[type, tuple[str, torch.dtype]] = {
    bool: (":bool", torch.bool),
    int: (":int", torch.int64),
    float: (":float", torch.float64),
}
"""How numbers that are no tensors are written."""


def _adamw(groups: Groups, learning_rate: float, weight_decay: float) -> Optimizer:
    try:
        # One kernel for all layers; on the CPU too, where hundreds of small tensors otherwise cost more in Python
        # than in arithmetic.
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
    except (RuntimeError, TypeError) as why:
        log.debug("no fused AdamW here (%s)", why)
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, foreach=True)


def _adafactor(groups: Groups, learning_rate: float, weight_decay: float) -> Optimizer:
    if not hasattr(torch.optim, "Adafactor"):
        raise ValueError("The optimizer 'adafactor' needs torch 2.5 or newer; choose 'adamw'.")
    # The rate is multiplied with max(ε₂, RMS of the parameter), which is meant for whole weights: a LoRA's up begins
    # as zeros and would move a thousand times too slowly. With ε₂ = 1 the rate is what it says.
    return torch.optim.Adafactor(groups, lr=learning_rate, weight_decay=weight_decay, eps=(None, 1.0), foreach=True)


def _sgd(groups: Groups, learning_rate: float, weight_decay: float) -> Optimizer:
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, weight_decay=weight_decay, foreach=True)


def _lion(groups: Groups, learning_rate: float, weight_decay: float) -> Optimizer:
    return Lion(groups, learning_rate, weight_decay=weight_decay)


def _adamw_8bit(groups: Groups, learning_rate: float, weight_decay: float) -> Optimizer:
    # bitsandbytes keeps the state of parameters below 4096 numbers in 32 bits.
    optim = _package("bitsandbytes.optim", "bitsandbytes", "adamw-8bit")
    made: Optimizer = optim.AdamW8bit(groups, lr=learning_rate, weight_decay=weight_decay)
    return made


def _prodigy(groups: Groups, learning_rate: float, weight_decay: float) -> Optimizer:
    # Not in the configuration's own check: options nodes make it before the learning rate is known.
    if learning_rate < 0.1 or any(group["rate"] != 1.0 for group in groups):
        raise ValueError(
            f"The optimizer 'prodigy' finds the rate itself, one for all layers, and multiplies it with learning_rate, "
            f"which is {learning_rate:g}. Set learning_rate to 1 (and that of the text encoders, if they learn)."
        )
    prodigy = _package("prodigyopt", "prodigyopt", "prodigy")
    # As its authors advise for diffusion models; the safeguard keeps a warm-up from spoiling the estimate.
    made: Optimizer = prodigy.Prodigy(
        groups, lr=learning_rate, weight_decay=weight_decay, use_bias_correction=True, safeguard_warmup=True
    )
    return made


def _schedule_free(groups: Groups, learning_rate: float, weight_decay: float) -> Optimizer:
    free = _package("schedulefree", "schedulefree", "schedule-free")
    made: Optimizer = free.AdamWScheduleFree(groups, lr=learning_rate, weight_decay=weight_decay)
    made.train()  # type: ignore[attr-defined]
    return made


def _package(module: str, package: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as why:
        raise ValueError(
            f"The optimizer {name!r} needs the package {package} ({why}). Install it into ComfyUI's Python with "
            f"`pip install {package}`, or choose 'adamw'."
        ) from why


BUILDERS: dict[str, Callable[[Groups, float, float], Optimizer]] = {
    "adamw": _adamw,
    "adafactor": _adafactor,
    "sgd": _sgd,
    "adamw-8bit": _adamw_8bit,
    "lion": _lion,
    "prodigy": _prodigy,
    "schedule-free": _schedule_free,
}


def build(
    name: str,
    parameters: Sequence[nn.Parameter],
    learning_rate: float,
    weight_decay: float,
    rates: Sequence[float] | None = None,
) -> Optimizer:
    """An optimizer over ``parameters``, in a group for each factor of the learning rate.

    Args:
        rates: such a factor a parameter; None: 1 for all.

    Raises:
        ValueError: unknown name, or a package is not there (says how to install it).
    """
    if name not in BUILDERS:
        raise ValueError(f"Unknown optimizer {name!r}; choose one of {', '.join(BUILDERS)}.")
    of_rate: dict[float, list[nn.Parameter]] = {}
    for parameter, rate in zip(parameters, rates or [1.0] * len(parameters), strict=True):
        of_rate.setdefault(rate, []).append(parameter)
    groups = [{"params": group, "lr": learning_rate * rate, "rate": rate} for rate, group in of_rate.items()]
    return BUILDERS[name](groups, learning_rate, weight_decay)


def set_rate(optimizer: Optimizer, learning_rate: float) -> None:
    """Use this learning rate, times each group's factor, from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("rate", 1.0)


def averages(optimizer: Optimizer) -> bool:
    """Whether it trains at another point than the one that is to be used."""
    return hasattr(optimizer, "eval")


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """The parameters are what is to be used inside, and to the bit what they were afterwards.

    Schedule-free optimizers train at another point than they have found (Defazio et al. 2024, arXiv 2405.15682, eq. 1
    to 3: y, not x). Their own way there and back rounds.
    """
    if not averages(optimizer):
        yield
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = [parameter.detach().clone() for parameter in parameters]
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            for parameter, before in zip(parameters, trained, strict=True):
                parameter.copy_(before)


def state_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's whole state as CPU tensors; None values are left out.

    ``"<index of parameter>.<key>"``, and ``"group<index>.<key>"`` for what is kept a group; numbers that are no
    tensors say so at the end (``:int``).
    """
    found: dict[str, Any] = {}
    for index, parameter in enumerate(_parameters(optimizer)):
        found |= {f"{index}.{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    for index, group in enumerate(optimizer.param_groups):
        found |= {f"group{index}.{key}": group[key] for key in _PROGRESS if key in group}
    tensors: dict[str, Tensor] = {}
    for name, value in found.items():
        if isinstance(value, Tensor):
            # A copy of its own: 8-bit optimizers share one table among all parameters, which files may not.
            tensors[name] = value.detach().cpu().clone().contiguous()
        elif value is not None:
            ending, dtype = _PYTHON[type(value)]
            tensors[name + ending] = torch.tensor(value, dtype=dtype)
    return tensors


def load_state_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what :func:`state_tensors` took, to the bit, on each parameter's device.

    Not by ``load_state_dict``, which casts states to the parameter's dtype.

    Raises:
        ValueError: the state is not of these parameters. Kernels do not look, and would write beside them.
    """
    parameters = _parameters(optimizer)
    _check_state(optimizer, parameters, tensors)
    fused = [bool(group.get("fused")) for group in optimizer.param_groups for _ in group["params"]]
    for name, tensor in tensors.items():
        owner, _, key = name.partition(".")
        key, _, kind = key.partition(":")
        value = tensor.item() if kind else tensor.clone()
        if owner.startswith("group"):
            optimizer.param_groups[int(owner.removeprefix("group"))][key] = value
        elif owner.isdecimal():
            parameter = parameters[int(owner)]
            if isinstance(value, Tensor) and (key != "step" or fused[int(owner)]):
                value = value.to(parameter.device)
            optimizer.state[parameter][key] = value


RESIZABLE = ("adamw", "sgd", "lion")
"""Those whose state is a number for each of a parameter's, and nothing else."""


def resize(optimizer: Optimizer, changes: Sequence[Resized]) -> None:
    """Go on with parameters of other sizes, each in its place, with the state of what is left of them.

    What is new begins with moments of 0.
    """
    new = {change.old: change for change in changes}
    for group in optimizer.param_groups:
        group["params"] = [new[old].new if old in new else old for old in group["params"]]
    for change in changes:
        state = optimizer.state.pop(change.old, {})
        for key, value in state.items():
            if key in _AS_PARAMETER:
                state[key] = change.fitted(value, _zeros)
        optimizer.state[change.new] = state


def _zeros(tensor: Tensor, count: int, dim: int) -> Tensor:
    return torch.zeros_like(tensor.narrow(dim, 0, 1)).repeat_interleave(count, dim)


def _check_state(optimizer: Optimizer, parameters: Sequence[nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    owners: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        owner, _, key = name.partition(".")
        key, _, kind = key.partition(":")
        shape: tuple[int, ...] | None = () if kind or key == "step" else None
        if owner.isdecimal() and int(owner) < len(parameters):
            owners.setdefault(int(owner), set()).add(key)
            shape = tuple(parameters[int(owner)].shape) if key in _AS_PARAMETER else shape
            known = True
        else:
            group = owner.removeprefix("group")
            known = group.isdecimal() and int(group) < len(optimizer.param_groups) and key in _PROGRESS
        if not known or (shape is not None and tuple(tensor.shape) != shape):
            raise ValueError(
                f"The checkpoint's optimizer state {name[:100]} {tuple(tensor.shape)} is not of this run's adapters. "
                "Resume from another checkpoint, or start anew."
            )
    everywhere = {key for keys in owners.values() for key in keys if key in _AS_PARAMETER or key == "step"}
    if lacking := [owner for owner, keys in owners.items() if everywhere - keys]:
        raise ValueError(
            f"The checkpoint's optimizer state of adapter {lacking[0]} is not complete. Resume from another "
            "checkpoint, or start anew."
        )


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
