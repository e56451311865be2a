"""Which model is this? A name for what is kept between runs and is only good for the model it was made with."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor

SAMPLED = 64
"""Numbers read of each tensor: all of a large model's would take seconds, and no two models agree in these."""


def model_fingerprint(patcher: comfy.model_patcher.ModelPatcher, *others: Any) -> str:
    """32 hexadecimal digits of the model's weights, LoRAs and replaced parts, and of other values.

    The same after a restart, and wherever the model lies; it does not read the file.
    """
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, type(patcher.model.model_config).__name__)
    for name, entries in sorted(patcher.get_key_patches().items()):
        _add(digest, [name, entries[0][0], *entries[1:]])
    for name, value in sorted(patcher.object_patches.items()):
        _add(digest, [name, type(value).__name__])
        if isinstance(value, torch.nn.Module):
            _add(digest, dict(value.state_dict()))
    _add(digest, others)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Numbers, texts and tensors, in whatever they are wrapped; of other objects their class."""
    if isinstance(value, Tensor):
        flat = value.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // SAMPLED)][:SAMPLED].cpu()
        digest.update(
            f"{tuple(value.shape)}{value.dtype}".encode() + some.contiguous().view(torch.uint8).numpy().tobytes()
        )
    elif isinstance(value, Mapping):
        for name in sorted(value, key=str):
            _add(digest, [str(name), value[name]])
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        digest.update(f"[{len(value)}".encode())
        for item in value:
            _add(digest, item)
    elif value is None or isinstance(value, (str, bytes, bool, int, float)):
        digest.update(f"{type(value).__name__}{value!r};".encode())
    else:
        digest.update(f"{type(value).__name__};".encode())
        if hasattr(value, "weights"):  # the host's weight adapters
            _add(digest, value.weights)
