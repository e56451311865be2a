"""An inspection as markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from .inspection import Inspection, Sums
from .markdown import markdown_table

_MOST_UNKNOWN = 100


def inspection_table(inspection: Inspection) -> str:
    """What the file says, sums by role and by block, a row a layer, and the keys that mean nothing."""
    layers = inspection.layers
    ranks = sorted({layer.rank for layer in layers if layer.rank is not None})
    facts = {
        "architecture found": inspection.architecture,
        "layers": ", ".join(f"{n} {kind}" for kind, n in Counter(layer.kind for layer in layers).most_common()),
        "ranks": "–" if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}",
        "numbers": f"{sum(layer.numbers for layer in layers):,} "
        f"({', '.join(sorted({layer.dtype for layer in layers}))})",
        **{f"file: {name}": value for name, value in inspection.about.items()},
    }
    text = "# What is in this LoRA\n\n" + markdown_table(["", ""], [[k, v] for k, v in facts.items()])
    if notes := Counter(layer.note for layer in layers if layer.note):
        text += "\n\n" + "\n".join(f"- {n} layers: {note}" for note, n in notes.most_common(20))
    if inspection.unknown_keys:
        shown = inspection.unknown_keys[:_MOST_UNKNOWN]
        text += f"\n\n## {len(inspection.unknown_keys)} keys that are no part of a layer\n\n"
        text += "\n".join(f"- `{key}`" for key in shown)
        text += f"\n- … and {more} more" if (more := len(inspection.unknown_keys) - len(shown)) else ""
    text += "\n\n## By what they do\n\n" + _sums("role", inspection.roles)
    text += "\n\n## By block\n\n" + _sums("block", inspection.blocks)
    head = ["layer", "kind", "rank", "alpha", "norm", "effective rank", "stable rank", "rank for 99%", "largest values"]
    rows = [
        [
            layer.name if layer.known else f"{layer.name} (unknown)",
            layer.kind,
            "–" if layer.rank is None else str(layer.rank),
            "–" if layer.alpha is None else f"{layer.alpha:g}",
            _figure(layer.norm),
            _figure(layer.effective),
            _figure(layer.stable),
            "–" if layer.rank_99 is None else str(layer.rank_99),
            " ".join(f"{value:.3g}" for value in layer.values[:4]),
        ]
        for layer in layers
    ]
    text += "\n\nnorm: ‖ΔW‖_F. Effective rank: exp of the entropy of s / Σs (Roy & Vetterli 2007). Stable rank: "
    text += "‖ΔW‖²_F / s₁². Rank for 99%: the smallest that keeps 99% of Σs². s: the singular values of ΔW."
    return f"{text}\n\n## Layers\n\n{markdown_table(head, rows)}\n"


def _figure(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.4g}"


def _sums(what: str, found: Sequence[Sums]) -> str:
    head = [what, "layers", "numbers", "norm of all", "mean rank", "effective rank", "stable rank", "rank for 99%"]
    figures = [[_figure(v) for v in (one.norm, one.rank, one.effective, one.stable, one.rank_99)] for one in found]
    rows = [[one.name, str(one.layers), f"{one.numbers:,}", *f] for one, f in zip(found, figures, strict=True)]
    return markdown_table(head, rows)
