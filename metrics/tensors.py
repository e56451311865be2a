"""A file of tensors into a network that has none yet: every one that it needs, of its shape, or an error that says
which."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .backbones import read_pickle

log = logging.getLogger(__name__)


def read_tensors(path: Path, wanted: str) -> dict[str, Tensor]:
    """Names -> tensors, of a safetensors file or of one that torch.save wrote.

    Args:
        wanted: what the file should have been, for messages.

    Raises:
        ValueError: it is neither.
    """
    try:
        return load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    except (SafetensorError, OSError) as why:
        raise ValueError(f"{path} cannot be read ({str(why)[:120]}); {wanted}") from why


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path, what: str, wanted: str) -> None:
    """Give the network its tensors, without a copy; what it does not need is told to the log.

    Args:
        network: may lie on the meta device.
        state: under the network's names.
        path, what, wanted: the file, the model, and where to get it, for messages.

    Raises:
        ValueError: some are missing, or of another shape.
    """
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    missing = sorted(set(shapes) - set(state))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of {what}'s {len(shapes)} tensors, e.g. {', '.join(missing[:3])} (as "
            f"they are called in memory): the download is incomplete, or the file is of another model; {wanted}"
        )
    wrong = next((name for name in shapes if state[name].shape != shapes[name]), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: {wrong} is {tuple(state[wrong].shape)}, expected {tuple(shapes[wrong])}: it is not {what}, or of "
            f"another size; {wanted}"
        )
    unknown = sorted(set(state) - set(shapes))
    if unknown:
        log.warning("%s: %d tensors are not %s's and not used, e.g. %s", path, len(unknown), what, unknown[0])
    network.load_state_dict({name: state[name] for name in shapes}, assign=True)
