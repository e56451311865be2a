"""The two LoRA nodes, run in this process with the host's own folders."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.lora.delta import LowRankDelta
from likeness.lora.keys import SCHEMES, from_deltas, to_deltas
from likeness.lora.model import LoraTensors

LAYER = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def lora() -> LoraTensors:
    delta = LowRankDelta(torch.randn(4, 2), torch.randn(2, 6), 0.5, "linear")
    return LoraTensors(from_deltas({LAYER: delta}), {"likeness.trigger": "sks", "likeness.res_blocks": "[2, 2, 2, 2]"})


def a_model(columns: int) -> SimpleNamespace:
    """As much of a MODEL as Load LoRA asks for."""
    state = {f"{LAYER}.weight": torch.empty(4, columns, device="meta")}
    return SimpleNamespace(model=SimpleNamespace(state_dict=lambda: state))


@pytest.mark.parametrize("naming", SCHEMES)
def test_saved_by_one_node_and_loaded_by_the_other(comfy: Any, lora: LoraTensors, naming: str) -> None:
    """Fails if the file is not where the host lists LoRAs, or comes back with another ΔW or without its metadata."""
    from likeness.nodes.lora_files import LikenessLoadLoRA, LikenessSaveLoRA

    (path,) = LikenessSaveLoRA.execute(lora, f"mine/{naming}", naming, "fp32").result
    assert Path(path) == comfy.loras / "mine" / f"{naming}.safetensors"
    name = str(Path("mine") / f"{naming}.safetensors")
    assert name in comfy.folder_paths.get_filename_list("loras")
    before = LikenessLoadLoRA.fingerprint_inputs(name)
    loaded, text = LikenessLoadLoRA.execute(name, a_model(6)).result
    assert json.loads(text)["likeness.trigger"] == "sks" and json.loads(text)["modelspec.title"] == naming
    assert torch.allclose(to_deltas(loaded)[LAYER].dense(), to_deltas(lora)[LAYER].dense(), atol=1e-6)
    with pytest.raises(ValueError, match=rf"{LAYER}.*4×6.*4×7"):
        LikenessLoadLoRA.execute(name, a_model(7))
    LikenessSaveLoRA.execute(lora, f"mine/{naming}", naming, "bf16")
    assert LikenessLoadLoRA.fingerprint_inputs(name) != before


@pytest.mark.parametrize("filename", ["", "  ", "../x", "a/../../x", "/etc/x", "C:\\x", "a/", "..\\x"])
def test_no_file_outside_the_folder(comfy: Any, lora: LoraTensors, filename: str) -> None:
    """Fails if a workflow from a stranger could write a file anywhere."""
    from likeness.nodes.lora_files import LikenessSaveLoRA

    with pytest.raises(ValueError, match="models/loras"):
        LikenessSaveLoRA.execute(lora, filename, "comfy", "fp16")
