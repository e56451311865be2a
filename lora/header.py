"""Which model a LoRA file is for, by the names and shapes in its header; no tensor is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import torch

from . import suffixes
from .inspection import UNKNOWN, architecture_of
from .resolve import Resolver
from .sizes import changed_size

_TEXT = re.compile(r"attn2[._](?:processor[._])?to_[kv](?:_lora)?$")  # their width is the text's
_LOOKED_UP = 32


def architecture_by_shapes(shapes: Mapping[str, Sequence[int]], res_blocks: Sequence[int] | None = None) -> str:
    """As ``inspection.architecture_of`` calls it; a few layers tell, the text's first among them.

    shapes: key of the file -> shape. res_blocks: of the UNet, where the metadata says it.
    """
    groups: dict[str, dict[str, Sequence[int]]] = {}
    for key, shape in shapes.items():
        if (split := suffixes.split(key)) and split[1] != suffixes.ALPHA:
            groups.setdefault(split[0], {})[split[1]] = shape
    text, others = [base for base in groups if _TEXT.search(base)], list(groups)
    chosen = dict.fromkeys([*text[:_LOOKED_UP], *others[:: max(1, len(others) // _LOOKED_UP)]])
    sizes = {base: _size(groups[base]) for base in chosen}
    resolver = Resolver(chosen, None, res_blocks, {base: size[1] for base, size in sizes.items() if size})
    found = {target.layer: sizes[base] for base in chosen if (target := resolver.find(base))}
    return architecture_of(found) if found else UNKNOWN


def _size(parts: Mapping[str, Sequence[int]]) -> tuple[int, int] | None:
    """(outputs, the rest) of ΔW, where the shapes tell."""
    if suffixes.UP in parts and suffixes.DOWN in parts and parts[suffixes.UP] and len(parts[suffixes.DOWN]) > 1:
        return parts[suffixes.UP][0], math.prod(parts[suffixes.DOWN][1:])
    size = changed_size({name: torch.empty(tuple(shape), device="meta") for name, shape in parts.items()})
    return None if size is None or size[1] is None else (size[0], size[1])
