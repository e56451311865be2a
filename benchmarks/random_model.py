"""A base model of random weights, drawn where it will be: no file of 24 GB, and the same numbers in both libraries."""

from __future__ import annotations

import zlib
from typing import Any

import base_model
import torch
from models import Model, names
from torch import Tensor


def random_in_host(
    model: Model,
    device: torch.device,
    dtype: torch.dtype,
    compute: torch.dtype | None = None,
    where: torch.device | None = None,
) -> Any:
    """A MODEL of the host for the device, loaded by no one yet; compute: None = in dtype; where: None = on the device.

    Elsewhere it is made of other numbers, a few thousand times the same ones: a CPU draws ten billion in minutes.
    """
    where = where or device
    kind = base_model.peer_class(model)  # imported first: what a library makes at import has a device too
    with torch.device("meta"):
        state = base_model.under_host_names(model, kind(**model.config).state_dict())
    made = base_model.made_in_host(model, state, where, dtype, compute)
    there = made.diffusion_model.state_dict()
    if set(there) != set(state):
        raise ValueError(f"the host's {model.kind} has other tensors: {sorted(set(there) ^ set(state))[:4]}")
    for name, tensor in there.items():
        if where == device:
            tensor.copy_(drawn(name, tensor.shape, device))
        else:
            fill(tensor, name)
    return base_model.as_model(made, device)


def random_in_diffusers(model: Model, device: torch.device, dtype: torch.dtype) -> Any:
    """The same weights in diffusers' model, frozen."""
    kind = base_model.peer_class(model)
    with torch.device("meta"):
        peer = kind(**model.config)
        whole = {name: tensor.shape for name, tensor in base_model.under_host_names(model, peer.state_dict()).items()}
    peer = peer.to(dtype).to_empty(device=device)
    table = names(model)
    for key, tensor in peer.state_dict().items():
        entry = table[key]
        theirs = drawn(entry.name, whole[entry.name], device)
        if entry.rows is not None:
            theirs = theirs.narrow(0, *entry.rows)
        tensor.copy_(entry.turn(theirs) if entry.turn else theirs)
    peer.requires_grad_(False)
    peer.eval()
    return peer


def fill(tensor: Tensor, name: str) -> None:
    """As :func:`drawn`, but from a million numbers again and again."""
    if tensor.ndim < 2:
        tensor.copy_(drawn(name, tensor.shape, tensor.device))
        return
    some = drawn(name, torch.Size((1 << 20, 1)), tensor.device).flatten().mul_(tensor.shape[1:].numel() ** -0.5)
    some = some.to(tensor.dtype)
    for part in tensor.view(-1).split(len(some)):
        part.copy_(some[: len(part)])


def drawn(name: str, shape: torch.Size, device: torch.device) -> Tensor:
    """The tensor of that host name, bf16, by its name alone: N(0, 1/fan-in); scales of norms 1, biases 0."""
    if len(shape) < 2:
        return torch.full(shape, float(not name.endswith("bias")), dtype=torch.bfloat16, device=device)
    chance = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    return torch.randn(shape, generator=chance, dtype=torch.bfloat16, device=device).mul_(shape[1:].numel() ** -0.5)
