"""What a merge did, as markdown and as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ..lora.inspection import block_order
from ..lora.markdown import markdown_table
from ..lora.roles import block_of
from .align import Source
from .layer_weights import LayerWeights
from .measures import SignConflict
from .merge import MergedLayer
from .methods import METHODS
from .options import MergeOptions


def merge_report(
    sources: Sequence[Source],
    options: MergeOptions,
    layers: Sequence[MergedLayer],
    rules: Sequence[LayerWeights] = (),
) -> str:
    """What was merged and how, figures over all layers, a row a block, then a row a layer.

    Figures over layers are weighted as ``whole`` says. sources, options, rules: those that ``merge_loras`` was given.
    """
    all_of_it = whole(layers)
    used = ", ".join(f"{name} {getattr(options, name)}" for name in METHODS[options.method].uses)
    head = f"# Merged {len(sources)} LoRAs by {options.method}\n\n"
    head += f"λ {options.scale:g}, output {options.output.text}{', ' if used else ''}{used}.\n\n"
    rows = [
        [source.name, f"{source.weight:g}", str(sum(layer.norms[i] > 0 for layer in layers)), f"{norm:.4g}"]
        for i, (source, norm) in enumerate(zip(sources, all_of_it.norms, strict=True))
    ]
    rows.append(["merged", "", str(len(layers)), f"{all_of_it.norm:.4g}"])
    head += markdown_table(["LoRA", "weight", "layers", "norm, with its weight"], rows)
    if rules:
        factors = [[rule.pattern, ", ".join(f"{factor:g}" for factor in rule.factors)] for rule in rules]
        head += "\n\n" + markdown_table(["weights of layers", "factors"], factors)
    ranks = [layer.rank for layer in layers if layer.rank is not None]
    lines = [f"Re-compression: relative error {all_of_it.error:.4g}, energy kept {all_of_it.energy:.4f}."]
    if ranks:
        lines.append(f"Ranks: {min(ranks)} to {max(ranks)}, mean {sum(ranks) / len(ranks):.1f}.")
    if not math.isnan(all_of_it.cosine):
        lines.append(
            f"Cosine between two LoRAs: {all_of_it.cosine:+.3f} (unrelated ones have about 0). Opposite signs: "
            f"{_conflict(all_of_it.conflict)}; what is near chance is no conflict."
        )
    text = head + "\n\n" + "\n\n".join(lines)
    if len(blocks := by_block(layers)) > 1:
        text += f"\n\n## Blocks\n\n{_table('block', blocks)}"
    return f"{text}\n\n## Layers\n\n{_table('layer', layers)}\n"


def merge_json(
    sources: Sequence[Source],
    options: MergeOptions,
    layers: Sequence[MergedLayer],
    rules: Sequence[LayerWeights] = (),
) -> str:
    """The same for programs; a figure that is not there is null. A line an entry of the outer lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    def figures(layer: MergedLayer) -> dict[str, Any]:
        return asdict(layer) | {"error": layer.error}

    found = {
        "method": options.method,
        "scale": options.scale,
        "output": options.output.text,
        "options": {name: getattr(options, name) for name in METHODS[options.method].uses},
        "loras": [{"name": source.name, "weight": source.weight} for source in sources],
        "layer_weights": [{"layers": rule.pattern, "factors": rule.factors} for rule in rules],
        "whole": figures(whole(layers)),
        "blocks": [figures(block) for block in by_block(layers)],
        "layers": [figures(layer) for layer in layers],
    }
    return json.dumps(plain(found), ensure_ascii=False, allow_nan=False, indent=1)


def by_block(layers: Sequence[MergedLayer]) -> list[MergedLayer]:
    """The figures of each block, as ``whole`` sums them, in the order in which the model runs; rank: the mean, rounded.

    Raises ValueError where there is no layer.
    """
    found: dict[str, list[MergedLayer]] = {}
    for layer in layers:
        found.setdefault(block_of(layer.name), []).append(layer)
    if not found:
        raise ValueError("there is no layer to sum up")
    out = []
    for name in sorted(found, key=block_order):
        ranks = [layer.rank for layer in found[name] if layer.rank is not None]
        mean = round(sum(ranks) / len(ranks)) if ranks else None
        out.append(replace(whole(found[name]), name=name, rank=mean))
    return out


def _table(what: str, layers: Sequence[MergedLayer]) -> str:
    body = [
        [
            layer.name,
            "–" if layer.rank is None else str(layer.rank),
            f"{layer.norm:.4g}",
            " ".join(f"{norm:.3g}" for norm in layer.norms),
            _figure(layer.cosine, "+.3f"),
            _conflict(layer.conflict),
            f"{layer.energy:.4f}",
            f"{layer.error:.4f}",
        ]
        for layer in layers
    ]
    head = [what, "rank", "norm", "norms of each", "cosine", "opposite signs", "energy kept", "relative error"]
    return markdown_table(head, body)


def whole(layers: Sequence[MergedLayer]) -> MergedLayer:
    """The figures over all layers. Norms and errors: of all layers as one vector. cosine, conflict: means over the
    layers that have them, weighted by the number of entries. weights are NaN, for layers may differ in them.

    Raises ValueError where there is no layer.
    """
    if not layers:
        raise ValueError("there is no layer to sum up")
    count = len(layers[0].norms)
    squared = math.fsum(layer.norm**2 for layer in layers)
    lost = math.fsum((1 - layer.energy) * layer.norm**2 for layer in layers)

    def mean(figures: Sequence[float]) -> float:
        known = [(f, math.prod(y.shape)) for f, y in zip(figures, layers, strict=True) if not math.isnan(f)]
        return math.fsum(f * n for f, n in known) / sum(n for _, n in known) if known else math.nan

    return MergedLayer(
        name="all layers",
        shape=(sum(math.prod(layer.shape) for layer in layers),),
        weights=(math.nan,) * count,
        norms=tuple(math.sqrt(math.fsum(layer.norms[i] ** 2 for layer in layers)) for i in range(count)),
        ranks=(None,) * count,
        rank=None,
        norm=math.sqrt(squared),
        energy=1 - lost / squared if squared > 0 else 1.0,
        cosine=mean([layer.cosine for layer in layers]),
        conflict=SignConflict(mean([y.conflict.share for y in layers]), mean([y.conflict.chance for y in layers])),
    )


def _figure(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _conflict(conflict: SignConflict) -> str:
    return "–" if math.isnan(conflict.share) else f"{conflict.share:.1%} (chance {conflict.chance:.1%})"
