"""Which layer got which rank: as a picture and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from ..lora.canvas import canvas
from ..lora.delta import LowRankDelta
from ..lora.resolve import MODEL
from ..lora.roles import ATTENTION, ROLES, block_of, role_of
from .ranks import LayerRank

ROW, HEAD, WIDTH = 22, 90, 1024
_LONGEST = 2048
"""Pixels."""


def rank_table(ranks: Mapping[str, LayerRank], deltas: Mapping[str, LowRankDelta]) -> str:
    """A JSON object: means, and a line a layer with its rank while trained and in the file, ν and ‖ΔW‖.

    Args:
        deltas: what is in the file, of the same layers.
    """
    by_role: dict[str, list[int]] = {}
    for name, layer in ranks.items():
        by_role.setdefault(role_of(name), []).append(layer.exported)
    exported = [layer.exported for layer in ranks.values()]
    layers = [
        {
            "layer": name,
            "block": block_of(name),
            "role": role_of(name),
            "rank": layer.rank,
            "exported_rank": layer.exported,
            "nu": layer.nu,
            "norm": layer.norm,
        }
        for name, layer in ranks.items()
    ]
    whole = {
        "mean_rank": sum(exported) / len(exported),
        "smallest_rank": min(exported),
        "largest_rank": max(exported),
        "mean_rank_by_role": {role: sum(by_role[role]) / len(by_role[role]) for role in ROLES if role in by_role},
        "numbers": sum(delta.up.numel() + delta.down.numel() for delta in deltas.values()),
        "layers": layers,
    }
    return json.dumps(whole, indent=2)


def rank_map(ranks: Mapping[str, LayerRank], title: str = "Rank of each layer") -> Tensor:
    """A row a place in the model, a column a layer in it, a panel a role; numbers and colours are the file's ranks.

    Returns:
        (1, height, 1024, 3) float32 in [0, 1], an IMAGE of the host; the height follows the count of rows.
    """
    panels: dict[str, dict[tuple[str, str], int]] = {}
    for name, layer in ranks.items():
        panels.setdefault(role_of(name), {})[_place(name)] = layer.exported
    roles = [role for role in ROLES if role in panels]
    rows = {role: list(dict.fromkeys(row for row, _ in panels[role])) for role in roles}
    columns = {role: list(dict.fromkeys(column for _, column in panels[role])) for role in roles}
    height = min(_LONGEST, HEAD + ROW * max(len(found) for found in rows.values()) + 30)
    figure, image = canvas(WIDTH, max(240, height))
    top = max(layer.exported for layer in ranks.values())
    # A panel is as wide as its columns, and the names beside it.
    each = figure.subplots(1, len(roles), squeeze=False, width_ratios=[2 + len(columns[role]) for role in roles])[0]
    size = 8 if height < _LONGEST else 8 * _LONGEST / (HEAD + ROW * max(len(found) for found in rows.values()))
    shown: Any = None
    for axes, role in zip(each, roles, strict=True):
        cells = np.full((len(rows[role]), len(columns[role])), np.nan)
        for (row, column), rank in panels[role].items():
            cells[rows[role].index(row), columns[role].index(column)] = rank
        shown = axes.imshow(cells, cmap="viridis", vmin=0, vmax=top, aspect="auto")
        for y, x in zip(*np.nonzero(~np.isnan(cells)), strict=True):
            dark = cells[y, x] < 0.6 * top
            axes.text(x, y, f"{cells[y, x]:.0f}", ha="center", va="center", fontsize=size, color="w" if dark else "k")
        axes.set_xticks(range(len(columns[role])), columns[role], rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(rows[role])), rows[role], fontsize=size)
        axes.set_title(f"{role}, mean {np.nanmean(cells):.1f}", fontsize=10)
    figure.colorbar(shown, ax=list(each), label="rank", fraction=0.03, pad=0.01, ticks=range(0, top + 1, -(-top // 8)))
    figure.suptitle(title, fontsize=12)
    return image()


def _place(name: str) -> tuple[str, str]:
    """(where, which layer there): the attention module's place and its own name, or the block and what is left."""
    short = name.removeprefix(MODEL)
    found = ATTENTION.search(short)
    if found and found[0].startswith("."):
        return short[: found.start()].replace(".transformer_blocks.", " · "), short[found.end() :].lstrip(".") or found[
            0
        ].strip(".")
    block = block_of(name)
    return block, short.removeprefix(block).lstrip(".") or short
