"""What resizing did, as markdown."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from .markdown import markdown_table
from .resize import ResizedLayer, Truncation, relative_error


def resize_report(layers: Sequence[ResizedLayer], how: Truncation) -> str:
    """Sums first, then what was kept and why, then a row a layer: old and new rank, share of Σs², relative error."""
    numbers = [sum(layer.numbers[i] for layer in layers) for i in (0, 1)]
    size = [sum(layer.bytes[i] for layer in layers) / 2**20 for i in (0, 1)]
    both = [(layer.before, layer.after) for layer in layers if layer.before is not None and layer.after is not None]
    cut = sum(layer.numbers[0] != layer.numbers[1] for layer in layers)
    known = any(math.isfinite(layer.squared[0]) for layer in layers)
    rows = [
        ["layers", str(len(layers)), f"{cut} changed"],
        ["mean rank", *(f"{sum(pair[i] for pair in both) / max(1, len(both)):.1f}" for i in (0, 1))],
        ["numbers", *(f"{n:,}" for n in numbers)],
        ["size, MiB", *(f"{n:.2f}" for n in size)],
    ]
    text = f"# Resized to {how.text}\n\n" + markdown_table(["", "before", "after"], rows)
    if numbers[0]:
        text += f"\n\n{numbers[1] / numbers[0]:.1%} of the numbers are left"
        text += f", with a relative error ‖ΔW − new‖ / ‖ΔW‖ of {relative_error(layers):.4g} over all" if known else ""
        text += ". Sizes are at the precision in which the layers came in; what is cut is float32 until it is saved."
    if notes := Counter(layer.note for layer in layers if layer.note):
        text += "\n\n" + "\n".join(f"- {count} layers: {note}" for note, count in notes.items())
    body = [
        [
            layer.name,
            layer.kind,
            "–" if layer.before is None else str(layer.before),
            "–" if layer.after is None else str(layer.after),
            f"{layer.energy:.4f}",
            "–" if math.isnan(layer.squared[0]) else f"{layer.error:.4f}",
            layer.note,
        ]
        for layer in layers
    ]
    head = ["layer", "kind", "rank", "new rank", "energy kept", "relative error", "note"]
    return f"{text}\n\n## Layers\n\n" + markdown_table(head, body) + "\n"
