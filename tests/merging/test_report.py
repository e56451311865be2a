"""What a merge reports: sums over layers against numpy on all of ΔW as one vector, and a text that says it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from likeness.merging.align import Source
from likeness.merging.layer_weights import parse_layer_weights
from likeness.merging.merge import merge_loras
from likeness.merging.options import MergeOptions, OutputRank
from likeness.merging.report import merge_report, whole


def lora(seed: int, layers: dict[str, tuple[int, int]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for name, (rows, columns) in layers.items():
        out[f"{name}.lora_up.weight"] = torch.randn(rows, 3, generator=generator)
        out[f"{name}.lora_down.weight"] = torch.randn(3, columns, generator=generator)
    return out


def dense(tensors: dict[str, torch.Tensor], name: str) -> np.ndarray:
    return (tensors[f"{name}.lora_up.weight"].double() @ tensors[f"{name}.lora_down.weight"].double()).numpy()


def test_sums_over_layers() -> None:
    """Fails if norms or errors are averaged and not taken of all layers together, or a layer of one LoRA alone, which
    has no cosine, counts as one."""
    first, second = lora(1, {"a": (9, 8), "b": (30, 20)}), lora(2, {"a": (9, 8)})
    sources = [Source("first", first, 2.0), Source("second", second, -1.0)]
    cut, layers = merge_loras(sources, MergeOptions(output=OutputRank("number", rank=2)))
    found = whole(layers)
    full = {"a": 2 * dense(first, "a") - dense(second, "a"), "b": 2 * dense(first, "b")}
    total = math.sqrt(sum((delta**2).sum() for delta in full.values()))
    lost = math.sqrt(sum(((full[name] - dense(cut, name)) ** 2).sum() for name in full))
    assert found.norm == pytest.approx(total) and found.error == pytest.approx(lost / total, rel=1e-4)
    assert found.norms[0] == pytest.approx(2 * np.linalg.norm([np.linalg.norm(dense(first, n)) for n in "ab"]))
    assert found.cosine == layers[0].cosine and found.conflict == layers[0].conflict
    with pytest.raises(ValueError, match="no layer"):
        whole([])


def test_the_text_says_it() -> None:
    """Fails if the report lacks a layer, a figure, a rule or an option that the method uses, or shows NaN."""
    sources = [Source("first", lora(1, {"a": (9, 8), "b": (7, 8)}), 2.0), Source("sec|ond", lora(2, {"a": (9, 8)}), -1)]
    rules = parse_layer_weights("^a$ 0.5")
    options = MergeOptions("ties", density=0.25)
    text = merge_report(sources, options, merge_loras(sources, options, rules)[1], rules)
    assert "Merged 2 LoRAs by ties" in text and "density 0.25, majority total" in text and "^a$ | 0.5" in text
    assert "| first | 2 | 2 |" in text and "chance" in text and "## Blocks" in text
    assert all(text.partition("## Layers")[2].count(f"\n| {name} |") == 1 for name in "ab")
    assert "nan" not in text and "seed" not in text
    plain = merge_report(sources[:1], MergeOptions(measure=False), merge_loras(sources[:1])[1])
    assert "Cosine" not in plain and "relative error 0," in plain
