"""LoRA.rar in the host's own process: the file on a socket, coefficients in the merged LoRA, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.lora.delta import LowRankDelta
from likeness.lora.keys import from_deltas, to_deltas
from likeness.lora.model import LoraTensors
from likeness.merging.lora_rar import HyperNetwork, save_network

ATTENTION = "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1."


def lora(seed: int, title: str) -> LoraTensors:
    chance = torch.Generator().manual_seed(seed)
    sizes = {"to_q": 8, "to_k": 8, "to_out.0": 12}
    deltas = {
        ATTENTION + name: LowRankDelta(
            torch.randn(width, 2, generator=chance), torch.randn(2, width, generator=chance), 0.5, "linear"
        )
        for name, width in sizes.items()
    }
    return LoraTensors(from_deltas(deltas), {"modelspec.title": title})


@pytest.fixture(scope="module")
def network() -> HyperNetwork:
    """With numbers that are not the plain sum's."""
    made = HyperNetwork((8,)).begin(1)
    with torch.no_grad():
        made.out.weight.normal_(generator=torch.Generator().manual_seed(2))
    return made


@pytest.fixture(scope="module")
def folder(comfy: SimpleNamespace, network: HyperNetwork) -> Iterator[Path]:
    """models/hypernetworks with one file."""
    path = comfy.base / "models" / "hypernetworks"
    path.mkdir(parents=True, exist_ok=True)
    save_network(path / "tiny.safetensors", network)
    comfy.folder_paths.add_model_folder_path("hypernetworks", str(path), is_default=True)
    yield path


def test_merged_file_has_the_coefficients(folder: Path, network: HyperNetwork) -> None:
    """ΔW of the output = Σ ΔWᵢ diag(mᵢ), by dense matrices; keys, and widths without a head, are added up. Fails where
    file and socket differ, or the coefficients go to the wrong LoRA."""
    from likeness.nodes.lora_rar import LikenessLoRARar

    pair = lora(1, "cat"), lora(2, "ink")
    merged, plot, report = LikenessLoRARar.execute(*pair, "tiny.safetensors").args
    again = LikenessLoRARar.execute(*pair, "(connected)", trained=network).args[0]
    assert all(torch.equal(merged[key], again[key]) for key in merged)
    one, other, both = (to_deltas(each) for each in (*pair, merged))
    m = network.coefficients(one[ATTENTION + "to_q"], other[ATTENTION + "to_q"])
    assert m is not None
    for name, coefficients in ((ATTENTION + "to_q", m), (ATTENTION + "to_k", torch.ones(2, 8))):
        expected = one[name].dense() * coefficients[0] + other[name].dense() * coefficients[1]
        torch.testing.assert_close(both[name].dense(), expected, rtol=1e-4, atol=1e-4)
        assert both[name].rank == 4
    name = ATTENTION + "to_out.0"
    torch.testing.assert_close(both[name].dense(), one[name].dense() + other[name].dense(), rtol=1e-4, atol=1e-4)
    assert plot.shape[0] == 1 and "1 layers of width 12" in report and "cat" in report
    record = json.loads(merged.metadata["likeness.merged_from"])
    assert record["method"] == "LoRA.rar" and [one["name"] for one in record["loras"]] == ["cat", "ink"]


@pytest.mark.parametrize("trained", [None, HyperNetwork((640,))])
def test_refusals(folder: Path, trained: Any) -> None:
    """No hypernetwork, or one of another model: says what to do."""
    from likeness.nodes.lora_rar import LikenessLoRARar

    with pytest.raises(ValueError, match=r"choose a file|for this model"):
        LikenessLoRARar.execute(lora(1, "cat"), lora(2, "ink"), "(connected)", trained=trained)
