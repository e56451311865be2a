"""Figures by block, and the picture of them: what is drawn is read back from the axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from likeness.merging import heat_map
from likeness.merging.align import Source
from likeness.merging.merge import MergedLayer, merge_loras
from likeness.merging.options import MergeOptions, OutputRank
from likeness.merging.report import by_block, merge_json

NAMES = ("input_blocks.1.1", "input_blocks.10.1", "input_blocks.2.1")


def lora(seed: int, size: float) -> dict[str, torch.Tensor]:
    chance = torch.Generator().manual_seed(seed)
    out = {}
    for name in NAMES:
        for layer in ("attn1.to_q", "attn2.to_k"):
            base = f"diffusion_model.{name}.transformer_blocks.0.{layer}"
            out[f"{base}.lora_up.weight"] = size * torch.randn(20, 2, generator=chance)
            out[f"{base}.lora_down.weight"] = torch.randn(2, 16, generator=chance)
    return out


def merged(count: int, measure: bool = True) -> list[MergedLayer]:
    sources = [Source(f"number {i}", lora(i, 1.0 + i), 1.0) for i in range(count)]
    return merge_loras(sources, MergeOptions("ties", OutputRank("number", rank=3), measure=measure))[1]


def drawn(monkeypatch: pytest.MonkeyPatch, layers: list[MergedLayer], names: list[str]) -> list[Any]:
    """The axes of the picture."""
    made: list[Any] = []
    canvas = heat_map.canvas

    def kept(width: int, height: int) -> Any:
        figure, image = canvas(width, height)
        made.append(figure)
        return figure, image

    monkeypatch.setattr(heat_map, "canvas", kept)
    picture = heat_map.merge_heat_map(layers, names, "a merge", 700, 500)
    assert picture.shape == (1, 500, 700, 3) and picture.dtype == torch.float32
    assert 0 <= float(picture.min()) < float(picture.max()) <= 1
    return [axes for axes in made[0].axes if axes.get_images()]


def test_blocks_in_the_order_of_the_model() -> None:
    """Fails if a block's norm or energy is averaged over its layers, or input_blocks.10 stands before 2."""
    layers = merged(2)
    blocks = by_block(layers)
    assert [block.name for block in blocks] == ["input_blocks.1", "input_blocks.2", "input_blocks.10"]
    mine = [layer for layer in layers if ".input_blocks.2." in layer.name]
    assert len(mine) == 2 and blocks[1].norm == pytest.approx(math.hypot(*(layer.norm for layer in mine)))
    lost = sum((layer.error * layer.norm) ** 2 for layer in mine)
    assert 1 - blocks[1].energy == pytest.approx(lost / blocks[1].norm ** 2) and blocks[1].rank == 3


def test_what_is_drawn_is_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a row shows another LoRA, shares do not add up, or chance and measured signs are exchanged."""
    layers = merged(2)
    blocks = by_block(layers)
    panels = [np.asarray(axes.get_images()[0].get_array().data) for axes in drawn(monkeypatch, layers, ["a", "b"])]
    shares, merge, cosine, signs, energy = panels
    assert np.allclose(shares.sum(0), 1) and np.allclose(shares[0], [b.norms[0] / sum(b.norms) for b in blocks])
    assert merge.sum() == pytest.approx(1) and np.allclose(cosine[0], [b.cosine for b in blocks])
    assert np.allclose(signs, [[b.conflict.share for b in blocks], [b.conflict.chance for b in blocks]])
    assert np.allclose(energy[0], [b.energy for b in blocks])
    with pytest.raises(ValueError, match="1 names for 2 LoRAs"):
        heat_map.merge_heat_map(layers, ["a"])


def test_many_loras_and_figures_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the largest of twenty are not those shown, the rest is lost, or NaN is drawn as a figure."""
    layers = merged(20, measure=False)
    axes = drawn(monkeypatch, layers, [f"number {i}" for i in range(20)])
    shares = np.asarray(axes[0].get_images()[0].get_array().data)
    assert shares.shape == (12, 3) and np.allclose(shares.sum(0), 1)
    rows = [label.get_text() for label in axes[0].get_yticklabels()]
    assert rows[-1] == "9 others" and rows[:-1] == [f"number {i}" for i in range(9, 20)]
    assert axes[2].get_images()[0].get_array().mask.all() and not axes[2].texts
    assert "NaN" not in merge_json([Source(str(i), {}) for i in range(20)], MergeOptions(), layers)
