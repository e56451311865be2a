"""What a merge did, as markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..lora.markdown import markdown_table
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
    """What was merged and how, figures over all layers, then a row a layer.

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
    table = markdown_table(
        ["layer", "rank", "norm", "norms of each", "cosine", "opposite signs", "energy kept", "relative error"], body
    )
    return head + "\n\n" + "\n\n".join(lines) + "\n\n## Layers\n\n" + table + "\n"


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
