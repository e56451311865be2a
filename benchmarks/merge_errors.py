"""How far from Σ wᵢΔWᵢ other ways to merge two LoRAs land: on the factors, as peft does it, and ours.

    .venv/bin/python benchmarks/merge_errors.py <one.safetensors> <other.safetensors>

Two LoRA files of one base model, of one rank; for other ranks the ways that work on factors have no answer. Only linear
layers that both change count. peft runs its own ``add_weighted_adapter``. An error is ‖merged − exact‖ / ‖exact‖ over
all layers as one vector. Prints markdown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import base_model
import torch
from torch import Tensor, nn

base_model.open_pack()

from likeness.lora.delta import LowRankDelta  # noqa: E402
from likeness.lora.keys import from_deltas, to_deltas  # noqa: E402
from likeness.lora.load import load_lora  # noqa: E402
from likeness.lora.markdown import markdown_table  # noqa: E402
from likeness.merging.align import Source  # noqa: E402
from likeness.merging.merge import merge_loras  # noqa: E402
from likeness.merging.options import MergeOptions, OutputRank  # noqa: E402
from likeness.merging.ties import ties  # noqa: E402

WEIGHTS = ((1.0, 1.0), (0.7, 0.4), (1.0, -1.0))
Pair = tuple[LowRankDelta, LowRankDelta]
Way = Callable[[dict[str, Pair], Sequence[float]], dict[str, Tensor]]


def exact(pairs: dict[str, Pair], weights: Sequence[float]) -> dict[str, Tensor]:
    """Σ wᵢΔWᵢ, float64."""
    return {
        name: sum(w * d.dense().double() for w, d in zip(weights, pair, strict=True)) for name, pair in pairs.items()
    }


def factors_apart(pairs: dict[str, Pair], weights: Sequence[float]) -> dict[str, Tensor]:
    """(Σ wᵢBᵢ)(Σ wᵢAᵢ): up and down as if they were weights of a model."""
    return {
        name: sum(w * d.scale * d.up.double() for w, d in zip(weights, pair, strict=True))
        @ sum(w * d.down.double() for w, d in zip(weights, pair, strict=True))
        for name, pair in pairs.items()
    }


def by_peft(how: str) -> Way:
    """peft's own merge of two adapters, of the same rank as each where that is asked for."""

    def merge(pairs: dict[str, Pair], weights: Sequence[float]) -> dict[str, Tensor]:
        from peft import LoraConfig, get_peft_model

        names = list(pairs)
        layers = nn.ModuleDict(
            {f"layer{i}": nn.Linear(*reversed(pairs[name][0].shape), bias=False) for i, name in enumerate(names)}
        )
        rank = pairs[names[0]][0].rank
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers))
        model = get_peft_model(layers, config, "0")
        model.add_adapter("1", config)
        for i, name in enumerate(names):
            for adapter, delta in enumerate(pairs[name]):
                layer = layers[f"layer{i}"]
                layer.lora_A[str(adapter)].weight.data = delta.down.float()
                layer.lora_B[str(adapter)].weight.data = delta.up.float() * delta.scale
        model.add_weighted_adapter(["0", "1"], list(weights), "merged", combination_type=how, svd_rank=rank)
        return {name: layers[f"layer{i}"].get_delta_weight("merged").detach().double() for i, name in enumerate(names)}

    return merge


def ours(**output: object) -> Way:
    def merge(pairs: dict[str, Pair], weights: Sequence[float]) -> dict[str, Tensor]:
        sources = [
            Source(str(i), from_deltas({name: pair[i] for name, pair in pairs.items()}), w)
            for i, w in enumerate(weights)
        ]
        options = MergeOptions(output=OutputRank(**output), measure=False)  # type: ignore[arg-type]
        return {name: delta.dense().double() for name, delta in to_deltas(merge_loras(sources, options)[0]).items()}

    return merge


def vector(merged: dict[str, Tensor]) -> Tensor:
    return torch.cat([merged[name].flatten() for name in sorted(merged)])


def ties_of_factors(pairs: dict[str, Pair], density: float) -> float:
    """Cosine of TIES on the ups and the downs apart with TIES on ΔW."""
    of_factors, of_deltas = {}, {}
    for name, pair in pairs.items():
        up, down = (ties(torch.stack([getattr(d, side).float() for d in pair]), density) for side in ("up", "down"))
        of_factors[name] = up @ down
        of_deltas[name] = ties(torch.stack([d.dense().float() for d in pair]), density)
    return float(torch.cosine_similarity(vector(of_factors), vector(of_deltas), dim=0))


def main(arguments: list[str]) -> int | str:
    if len(arguments) != 2:
        return str(__doc__)
    torch.set_num_threads(1)
    one, other = (to_deltas(load_lora(path)) for path in arguments)
    pairs = {name: (one[name], other[name]) for name in one if name in other and one[name].kind == "linear"}
    ranks = {delta.rank for pair in pairs.values() for delta in pair}
    if len(ranks) != 1:
        return f"the layers have ranks {sorted(ranks)}; expected one"
    rank = ranks.pop()
    ways: dict[str, Way] = {
        "factors added, (ΣwB)(ΣwA)": factors_apart,
        "peft, linear": by_peft("linear"),
        "peft, cat": by_peft("cat"),
        f"peft, svd to rank {rank}": by_peft("svd"),
        f"ours, rank {rank}": ours(mode="number", rank=rank),
        f"ours, exact (rank {2 * rank})": ours(),
    }
    rows = []
    for name, way in ways.items():
        row = [name]
        for weights in WEIGHTS:
            truth = vector(exact(pairs, weights))
            try:
                row.append(f"{float((vector(way(pairs, weights)) - truth).norm() / truth.norm()):.2g}")
            except ValueError as error:
                row.append(f"refused: {str(error)[:40]}")
        rows.append(row)
    print(f"{len(pairs)} layers of rank {rank}\n")
    print(markdown_table(["way", *(f"w = {weights}" for weights in WEIGHTS)], rows))
    for density in (0.2, 0.5):
        print(f"\nTIES of factors against TIES of ΔW, density {density}: cosine {ties_of_factors(pairs, density):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
