"""LoRAs with coefficients of their columns, into one ordinary LoRA: what ZipLoRA learns and LoRA.rar predicts."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..lora.columns import Columns, columns_of, with_columns
from ..lora.inspection import block_order
from ..lora.markdown import markdown_table
from ..lora.model import LoraTensors
from ..lora.roles import block_of
from .align import Source
from .merge import MergedLayer, merge_loras
from .metadata import MERGED_FROM
from .options import MergeOptions


def merge_columns(
    sources: Sequence[Source], columns: Mapping[str, Columns], method: str, about: Mapping[str, Any]
) -> tuple[LoraTensors, list[MergedLayer]]:
    """Σᵢ wᵢ ΔWᵢ diag(mᵢ), exactly: B (A diag(m)) side by side, so that the ranks add up; and what each layer became.

    Args:
        sources: the LoRAs. Layers without coefficients are added up as they are.
        columns: canonical layer -> coefficients.
        method: its name, for the metadata.
        about: what else the metadata are to say of it; plain values.

    Raises:
        ValueError: as ``merge_loras`` and ``with_columns`` do.
    """
    weighed = [
        replace(source, tensors=with_columns(source.tensors, columns_of(columns, number)))
        for number, source in enumerate(sources)
    ]
    lora, layers = merge_loras(weighed, MergeOptions(measure=False))
    record = {**json.loads(lora.metadata[MERGED_FROM]), "method": method, **about}
    names = " + ".join(source.name for source in sources)
    said = {
        MERGED_FROM: json.dumps(record, ensure_ascii=False),
        "ss_training_comment": f"merged with Likeness by {method}: {names}",
    }
    return LoraTensors(lora, {**lora.metadata, **said}), layers


@dataclass(frozen=True)
class Overlap:
    """The coefficients of some layers, all as one.

    means, spreads: of |m| of each LoRA, NaN where it has none. shared: the mean of |mᵢ mⱼ| over all pairs and columns;
    NaN where no layer has two LoRAs. count: of the layers.
    """

    means: tuple[float, ...]
    spreads: tuple[float, ...]
    shared: float
    count: int


def overlap_of(columns: Mapping[str, Columns], loras: int) -> Overlap:
    """Figures of the coefficients of ``columns``, of so many LoRAs."""
    means, spreads, shared = [], [], []
    for number in range(loras):
        values = [m.abs().double() for m in columns_of(columns, number).values()]
        count = sum(m.numel() for m in values)
        mean = sum(float(m.sum()) for m in values) / count if count else math.nan
        square = sum(float(m.square().sum()) for m in values) / count if count else math.nan
        means.append(mean)
        spreads.append(math.sqrt(max(0.0, square - mean**2)))
    for each in columns.values():
        rows = each.values.double()
        shared += [float((rows[i] * rows[j]).abs().mean()) for i in range(len(rows)) for j in range(i)]
    return Overlap(tuple(means), tuple(spreads), sum(shared) / len(shared) if shared else math.nan, len(columns))


def blocks_of_columns(columns: Mapping[str, Columns]) -> dict[str, dict[str, Columns]]:
    """Block -> its layers, blocks in the order in which the model runs."""
    found: dict[str, dict[str, Columns]] = {}
    for name, each in columns.items():
        found.setdefault(block_of(name), {})[name] = each
    return {block: found[block] for block in sorted(found, key=block_order)}


def columns_table(columns: Mapping[str, Columns], names: Sequence[str]) -> str:
    """Markdown: a row a block and one of all; mean |m| of each LoRA with its spread, and what two LoRAs share."""

    def row(label: str, of: Mapping[str, Columns]) -> list[str]:
        figures = overlap_of(of, len(names))
        each = zip(figures.means, figures.spreads, strict=True)
        shown = ["–" if math.isnan(mean) else f"{mean:.3f} ± {spread:.3f}" for mean, spread in each]
        return [label, str(figures.count), *shown, "–" if math.isnan(figures.shared) else f"{figures.shared:.3f}"]

    rows = [row("all", columns), *(row(block, of) for block, of in blocks_of_columns(columns).items())]
    return markdown_table(["block", "layers", *(f"|m| of {name}" for name in names), "shared, mean |m m′|"], rows)
