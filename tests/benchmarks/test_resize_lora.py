"""The LoRA that resizing is timed on has the layers of SDXL's, and the dense peer cuts the same ΔW."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from likeness.lora.inspection import inspect_lora
from likeness.lora.resize import Truncation, resize_lora

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    sys.path.insert(0, str(FOLDER))  # its own modules import each other by name
    try:
        spec = importlib.util.spec_from_file_location("benchmark_resize_lora", FOLDER / "resize_lora.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_the_layers_are_those_of_sdxl(bench: ModuleType) -> None:
    """Fails if a layer is missing, or counted twice: 722 in sd-scripts' files, 280 of either attention."""
    layers = dict(bench.sdxl_layers(10))
    assert len(layers) == 722 and sum(".attn1." in name for name in layers) == 280
    assert layers["diffusion_model.middle_block.1.transformer_blocks.9.attn2.to_k"] == (1280, 2048)
    tiny = {name: torch.zeros(shape[0], 1) for name, shape in bench.sdxl_layers(1)}
    pairs = {f"{name}.lora_up.weight": up for name, up in tiny.items()}
    pairs |= {f"{name}.lora_down.weight": torch.zeros(1, dict(bench.sdxl_layers(1))[name][1]) for name in tiny}
    assert inspect_lora(pairs).architecture == "Stable Diffusion XL"


def test_both_cut_the_same(bench: ModuleType) -> None:
    """Fails if the dense SVD were timed on another ΔW, or another rank, than ours."""
    up, down = torch.randn(48, bench.RANK), torch.randn(bench.RANK, 40)
    layer = {"diffusion_model.x.lora_up.weight": up, "diffusion_model.x.lora_down.weight": down}
    layer["diffusion_model.x.alpha"] = torch.tensor(bench.RANK / 2)
    how = Truncation("rank", rank=bench.NEW_RANK)
    ours, theirs, apart = bench.compare(layer, lambda one: resize_lora(one, how)[0])
    assert ours > 0 and theirs > 0 and abs(apart) < 1e-6
