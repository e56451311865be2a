"""What Merge LoRAs merges: LoRAs on sockets, and files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import folder_paths
from torch import Tensor

from ..lora.keys import Layers, canonicalise, check_fit
from ..lora.lazy import open_lora
from ..lora.model import LoraTensors, metadata_of
from ..merging.align import Source
from ..merging.selection import parse_weights, select_files


def merge_sources(
    wired: Sequence[tuple[str, Mapping[str, Tensor]]],
    files: str,
    weights: str,
    layers: Layers | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Source]:
    """LoRAs on sockets first, then the files; a file's own weight is multiplied by its place's in `weights`.

    wired: (socket, LORA_MODEL). layers: of the MODEL that all must fit, where one is known. progress(done, total) is
    called after each file. Raises ValueError as ``parse_weights``, ``select_files`` and ``open_lora`` do.
    """
    chosen = select_files(files, folder_paths.get_filename_list("loras"))
    if not wired and not chosen:
        raise ValueError("there is no LoRA to merge: connect some to the sockets, or write files into the box")
    each = parse_weights(weights, len(wired) + len(chosen))
    tensors = [_canonical(socket, lora, layers) for socket, lora in wired]
    names = [_name(socket, lora) for socket, lora in wired]
    for number, (name, _) in enumerate(chosen, 1):
        tensors.append(open_lora(folder_paths.get_full_path_or_raise("loras", name), layers))
        names.append(name.replace("\\", "/").rpartition(".")[0])
        if progress:
            progress(number, len(chosen))
    own = [1.0] * len(wired) + [weight for _, weight in chosen]
    times = Counter(names)
    sockets = [socket for socket, _ in wired] + [f"file {i}" for i in range(1, len(chosen) + 1)]
    unique = [name if times[name] == 1 else f"{name} ({s})" for name, s in zip(names, sockets, strict=True)]
    return [Source(*one) for one in zip(unique, tensors, [a * b for a, b in zip(each, own, strict=True)], strict=True)]


def files_fingerprint(files: str) -> str:
    """Changes when one of the files does, or another is chosen."""
    try:
        chosen = select_files(files, folder_paths.get_filename_list("loras"))
        stats = [(name, Path(folder_paths.get_full_path_or_raise("loras", name)).stat()) for name, _ in chosen]
    except (ValueError, OSError) as error:  # execute says it
        return str(error)
    return " ".join(f"{name} {stat.st_mtime_ns} {stat.st_size}" for name, stat in stats)


def _canonical(socket: str, lora: Mapping[str, Tensor], layers: Layers | None) -> Mapping[str, Tensor]:
    """In comfy naming; a LoRA of one of the host's nodes may have any."""
    try:
        if not isinstance(lora, LoraTensors):
            found = canonicalise(lora, layers)
            if found.unmatched:
                raise ValueError(f"{len(found.unmatched)} keys name no layer; the first is {found.unmatched[0]}")
            lora = found.tensors
        if layers is not None:
            check_fit(lora, layers)
    except ValueError as error:
        raise ValueError(f"{_name(socket, lora)}: {error}") from error
    return lora


def _name(socket: str, lora: Any) -> str:
    about = metadata_of(lora)
    return about.get("modelspec.title") or about.get("likeness.trigger") or socket
