"""Figures and pictures of coefficients, and the merged file's metadata."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from likeness.lora.columns import Columns
from likeness.lora.delta import LowRankDelta
from likeness.lora.keys import from_deltas, to_deltas
from likeness.lora.model import LoraTensors
from likeness.merging.align import Source
from likeness.merging.column_plot import column_plot
from likeness.merging.columns import columns_table, merge_columns, overlap_of

Q, K = (f"diffusion_model.input_blocks.{n}.1.transformer_blocks.0.attn1.to_q" for n in (1, 4))
COLUMNS = {
    Q: Columns((0, 1), torch.tensor([[1.0, -0.5, 0.0, 2.0], [0.5, 1.0, 3.0, 0.0]])),
    K: Columns((1,), torch.tensor([[0.25, 0.25, 0.25, 0.25]])),
}


def lora(seed: int, layers: tuple[str, ...]) -> LoraTensors:
    chance = torch.Generator().manual_seed(seed)
    made = {
        n: LowRankDelta(torch.randn(6, 2, generator=chance), torch.randn(2, 4, generator=chance), 0.5, "linear")
        for n in layers
    }
    return LoraTensors(from_deltas(made), {"likeness.trigger": f"word{seed}"})


def test_figures_are_those_of_numpy() -> None:
    """Fails where a LoRA's rows are mixed up, or layers that one LoRA has alone count as shared."""
    found = overlap_of(COLUMNS, 2)
    first = np.array([1.0, 0.5, 0.0, 2.0])
    second = np.array([0.5, 1.0, 3.0, 0.0, 0.25, 0.25, 0.25, 0.25])
    assert found.means == pytest.approx((first.mean(), second.mean()))
    assert found.spreads == pytest.approx((first.std(), second.std()))
    assert found.shared == pytest.approx(np.array([0.5, 0.5, 0.0, 0.0]).mean())
    assert math.isnan(overlap_of({K: COLUMNS[K]}, 2).shared)


def test_merged_file_is_the_weighted_sum() -> None:
    """Σ wᵢ ΔWᵢ diag(mᵢ) by dense matrices, and metadata that name method, LoRAs and their own hashes."""
    pair = [lora(1, (Q,)), lora(2, (Q, K))]
    sources = [Source("a", pair[0], 0.5), Source("b", pair[1])]
    merged, _ = merge_columns(sources, COLUMNS, "ZipLoRA", {"steps": 3})
    one, other, both = (to_deltas(each) for each in (*pair, merged))
    m = COLUMNS[Q].values
    torch.testing.assert_close(both[Q].dense(), 0.5 * one[Q].dense() * m[0] + other[Q].dense() * m[1])
    torch.testing.assert_close(both[K].dense(), other[K].dense() * 0.25)
    record = json.loads(merged.metadata["likeness.merged_from"])
    plain, _ = merge_columns(sources, {}, "ZipLoRA", {})
    assert record["method"] == "ZipLoRA" and record["steps"] == 3
    hashes = [each["hash"] for each in json.loads(plain.metadata["likeness.merged_from"])["loras"]]
    assert [each["hash"] for each in record["loras"]] == hashes
    assert merged.metadata["likeness.trigger"] == "word1, word2"


def test_table_and_picture() -> None:
    """A row a block beside all; a picture also where a LoRA has no layer at all."""
    table = columns_table(COLUMNS, ["a", "b"])
    assert "| input_blocks.4 | 1 | – | 0.250 ± 0.000 | – |" in table
    assert column_plot(COLUMNS, ["a", "b"]).shape == (1, 900, 1400, 3)
    assert column_plot({K: COLUMNS[K]}, ["a", "b"]).shape == (1, 900, 1400, 3)
    with pytest.raises(ValueError, match="no coefficients"):
        column_plot({}, ["a", "b"])
