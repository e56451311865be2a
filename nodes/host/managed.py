"""Networks that are no diffusion models (detectors, segmenters, feature networks), kept by the host as its own are.

The host loads them to the device when they are used, moves them off when something else needs the room, and frees them
on its "unload models". A file is read once a server run.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import torch
from torch import nn

_MOST = 8  # networks that are remembered; the oldest goes first
_kept: OrderedDict[Hashable, Managed] = OrderedDict()


class _Shell(nn.Module):
    """Around a network, for the host sets attributes (`device`) that some libraries have as read-only properties."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Managed:
    """A network in the host's hands.

    Args:
        network: in the dtype that it shall have; put into evaluation mode.
    """

    def __init__(self, network: nn.Module) -> None:
        network.eval().requires_grad_(False)
        self.device: torch.device = comfy.model_management.get_torch_device()
        offload = comfy.model_management.unet_offload_device()
        self._patcher = comfy.model_patcher.ModelPatcher(
            _Shell(network.to(offload)), load_device=self.device, offload_device=offload
        )

    def loaded(self, memory: float = 0) -> Any:
        """The network, whole on :attr:`device`. Ask before each use: the host may have moved it meanwhile.

        Args:
            memory: bytes that the use takes besides the weights, so that the host makes room.
        """
        comfy.model_management.load_models_gpu([self._patcher], memory_required=memory, force_full_load=True)
        return self._patcher.model.inner


def kept(files: tuple[Path, ...], settings: Hashable, make: Callable[[], nn.Module]) -> Managed:
    """What ``make`` gives, made once a server run for the same files (path, size, time of change) and settings."""
    stamps = tuple((str(file), (about := file.stat()).st_size, about.st_mtime_ns) for file in files)
    key = (stamps, settings)
    if key not in _kept:
        _kept[key] = Managed(make())
        while len(_kept) > _MOST:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return _kept[key]
