"""Layers under both names: what the two networks share, and where rows lie elsewhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch


@pytest.fixture()
def models(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/models.py, with the two tables of the host that it asks for, of one SD3 layer each kind."""

    def swap(weight: torch.Tensor) -> torch.Tensor:
        return torch.cat(weight.chunk(2)[::-1])

    def mmdit(config: dict) -> dict:
        block, last = "transformer_blocks.1", "joint_blocks.1"
        return {
            f"{block}.attn.to_q.weight": (f"{last}.x_block.attn.qkv.weight", (0, 0, 4)),
            f"{block}.attn.to_k.weight": (f"{last}.x_block.attn.qkv.weight", (0, 4, 4)),
            f"{block}.norm1_context.linear.weight": f"{last}.context_block.adaLN_modulation.1.weight",
            f"{block}.norm1_context.linear.bias": f"{last}.context_block.adaLN_modulation.1.bias",
            "norm_out.linear.weight": ("final_layer.adaLN_modulation.1.weight", None, swap),
        }

    utils = SimpleNamespace(mmdit_to_diffusers=mmdit, swap_scale_shift=swap)
    monkeypatch.setitem(sys.modules, "comfy", SimpleNamespace(utils=utils))
    monkeypatch.setitem(sys.modules, "comfy.utils", utils)
    path = Path(__file__).parents[2] / "benchmarks" / "models.py"
    spec = importlib.util.spec_from_file_location("benchmark_models", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_an_sd3s_layers_are_the_hosts(models: ModuleType) -> None:
    """Fails if q and k are taken for layers of the host, or the last block's norm is not turned like the final one."""
    sd3 = models.MODELS["sd3"]
    assert models.layers(sd3) == {
        "transformer_blocks.1.attn.to_qkv": "joint_blocks.1.x_block.attn.qkv",
        "transformer_blocks.1.norm1_context.linear": "joint_blocks.1.context_block.adaLN_modulation.1",
        "norm_out.linear": "final_layer.adaLN_modulation.1",
    }
    assert models.names(sd3)["transformer_blocks.1.attn.to_k.weight"].rows == (4, 4)
    turns = models.turns(sd3)
    assert set(turns) == {"transformer_blocks.1.norm1_context.linear", "norm_out.linear"}
    rows = torch.arange(4)
    assert all(turn(rows).tolist() == [2, 3, 0, 1] and torch.equal(turn(turn(rows)), rows) for turn in turns.values())


def test_the_hosts_node_gets_enough_pictures(models: ModuleType) -> None:
    """Fails if a batch is larger than the data set, or one latent is alone, on which 0.3.75 dies."""
    assert all(model.pictures >= max(2, model.batch) for model in models.MODELS.values())
    assert {model.batch for model in models.MODELS.values()} == {1, 4}
