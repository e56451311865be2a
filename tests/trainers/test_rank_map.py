from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from likeness.lora.delta import LowRankDelta
from likeness.trainers.rank_map import WIDTH, rank_map, rank_table
from likeness.trainers.ranks import LayerRank


def unet(blocks: int) -> dict[str, LayerRank]:
    where = [f"diffusion_model.input_blocks.{n}.1.transformer_blocks.0" for n in range(blocks)]
    return {
        f"{place}.{attention}.{layer}": LayerRank(2 + number % 3, 1 + number % 3, 0.5, 0.3)
        for number, place in enumerate(where)
        for attention in ("attn1", "attn2")
        for layer in ("to_q", "to_k", "to_v", "to_out.0")
    }


@pytest.fixture()
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    from likeness.trainers import rank_map as module

    figures = []
    plain = module.canvas

    def canvas(width: int, height: int) -> Any:
        figures.append(plain(width, height))
        return figures[-1]

    monkeypatch.setattr(module, "canvas", canvas)
    return figures


def test_every_rank_is_in_its_cell(drawn: list[Any]) -> None:
    """Fails if a layer is missing, in another's cell, or self- and cross-attention share a panel."""
    ranks = unet(4)
    ranks["diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"] = LayerRank(9, 9, 1.0)
    ranks["diffusion_model.out.2"] = LayerRank(5, 5, 1.0)
    ranks["clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj"] = LayerRank(7, 7, 1.0)
    picture = rank_map(ranks)
    assert picture.shape[0] == 1 and picture.shape[2:] == (WIDTH, 3) and float(picture.std()) > 0.05
    (figure, _), *_ = drawn
    panels = {axes.get_title().split(",")[0]: axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["self-attention", "cross-attention", "other"]
    cells = {name: sorted(int(text.get_text()) for text in axes.texts) for name, axes in panels.items()}
    assert cells["cross-attention"] == sorted(1 + n % 3 for n in range(4) for _ in range(4))
    assert cells["self-attention"] == sorted([*cells["cross-attention"], 9, 7]) and cells["other"] == [5]
    rows = [label.get_text() for label in panels["self-attention"].get_yticklabels()]
    assert len(rows) == 6 and any("middle_block" in row for row in rows) and any("clip_l" in row for row in rows)


def test_large_models_fit(drawn: list[Any]) -> None:
    """Fails if the picture of 70 blocks grows past what a browser shows, or labels overlap."""
    picture = rank_map(unet(140))
    assert picture.shape[1] <= 2048
    (figure, _), *_ = drawn
    axes = figure.axes[0]
    high = axes.get_window_extent().height / 140
    assert max(label.get_fontsize() for label in axes.get_yticklabels()) * 100 / 72 <= high * 1.3


def test_the_table_counts_what_is_in_the_file() -> None:
    """Fails if means are of trained ranks where the file's are told, or a layer's figures are another's."""
    ranks = unet(2)
    deltas = {
        name: LowRankDelta(torch.zeros(4, r.exported), torch.zeros(r.exported, 6), 1.0, "linear")
        for name, r in ranks.items()
    }
    table = json.loads(rank_table(ranks, deltas))
    assert table["mean_rank"] == 1.5 and (table["smallest_rank"], table["largest_rank"]) == (1, 2)
    assert table["numbers"] == 10 * sum(layer.exported for layer in ranks.values())
    assert set(table["mean_rank_by_role"]) == {"self-attention", "cross-attention"}
    assert [line["layer"] for line in table["layers"]] == list(ranks)
    assert table["layers"][0] == {
        "layer": next(iter(ranks)),
        "block": "input_blocks.0",
        "role": "self-attention",
        "rank": 2,
        "exported_rank": 1,
        "nu": 0.3,
        "norm": 0.5,
    }
