"""Inspect LoRA and Resize LoRA in this process; the host's own LoRA code says what a file's ΔW is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from likeness.lora.model import LoraTensors
from likeness.lora.resize import OTHERS

LINEAR = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
CONV = "diffusion_model.input_blocks.1.0.in_layers.2"
SHAPES = {LINEAR: (24, 20), CONV: (24, 20, 3, 3)}


def parts(kind: str, conv: bool) -> dict[str, torch.Tensor]:
    """The tensors of one layer of a kind, as its trainers write them."""

    def chance(*shape: int) -> torch.Tensor:
        return torch.randn(*shape)

    torch.manual_seed(len(kind) + conv)
    rows, columns = SHAPES[CONV if conv else LINEAR][0], 20
    ones, kernel = ([1, 1], [3, 3]) if conv else ([], [])
    flat = 9 * columns if conv else columns
    return {
        "lora": lambda: {
            "lora_up.weight": chance(rows, 4, *ones),
            "lora_down.weight": chance(4, columns, *kernel),
            "alpha": torch.tensor(2.5),
        },
        "peft": lambda: {"lora_B.weight": chance(rows, 4, *ones), "lora_A.weight": chance(4, columns, *kernel)},
        "loha": lambda: {
            **{f"hada_w{n}_a": chance(rows, 2) for n in (1, 2)},
            **{f"hada_w{n}_b": chance(2, flat) for n in (1, 2)},
            "alpha": torch.tensor(3.0),
        },
        "lokr": lambda: {
            "lokr_w1": chance(4, 5),
            **(
                {"lokr_w2": chance(6, 4, 3, 3)}
                if conv
                else {"lokr_w2_a": chance(6, 2), "lokr_w2_b": chance(2, 4), "alpha": torch.tensor(1.0)}
            ),
        },
        "diff": lambda: {"diff": chance(rows, columns, *kernel)},
    }[kind]()


def of_the_host(tensors: dict[str, torch.Tensor], layer: str) -> np.ndarray:
    """ΔW as the host's loader makes it of a file's tensors."""
    import comfy.lora

    loaded = comfy.lora.load_lora(dict(tensors), {layer: f"{layer}.weight"})
    patch = [(1.0, loaded[f"{layer}.weight"], 1.0, None, None)]
    weight = comfy.lora.calculate_weight(patch, torch.zeros(SHAPES[layer]), f"{layer}.weight")
    return np.asarray(weight.flatten(1).double().numpy())


@pytest.mark.parametrize("layer", SHAPES)
@pytest.mark.parametrize("kind", ["lora", "peft", "loha", "lokr", "diff"])
def test_the_host_draws_with_the_best_approximation(comfy: Any, kind: str, layer: str) -> None:
    """Fails if what comes out is, for the host, not numpy's best approximation of what went in."""
    from likeness.nodes.resize_lora import LikenessResizeLoRA

    before = {f"{layer}.{suffix}": tensor for suffix, tensor in parts(kind, layer == CONV).items()}
    u, s, v = np.linalg.svd(of_the_host(before, layer), full_matrices=False)
    lora, report = LikenessResizeLoRA.execute(before, "rank", 3, 1.0, 0.0, 0, OTHERS[1]).result
    after = of_the_host(lora, layer)
    assert np.abs(after - (u[:, :3] * s[:3]) @ v[:3]).max() <= 1e-5 * np.abs(after).max()
    error = np.sqrt((s[3:] ** 2).sum() / (s**2).sum())
    (row,) = [line for line in report.splitlines() if line.startswith(f"| {layer} |")]
    assert f"| 3 | {1 - error**2:.4f} | {error:.4f} |" in row


def test_from_file_to_file(comfy: Any) -> None:
    """Fails if load, resize, inspect and save do not fit together, or the file is not smaller, or loses its trigger."""
    from likeness.nodes.inspect_lora import LikenessInspectLoRA
    from likeness.nodes.lora_files import LikenessLoadLoRA, LikenessSaveLoRA
    from likeness.nodes.resize_lora import LikenessResizeLoRA

    tensors = {f"{LINEAR}.{suffix}": tensor for suffix, tensor in parts("lora", False).items()}
    tensors |= {f"{CONV}.{suffix}": tensor for suffix, tensor in parts("lora", True).items()}
    metadata = {"likeness.trigger": "sks", "likeness.res_blocks": "[2, 2, 2, 2]"}
    (big,) = LikenessSaveLoRA.execute(LoraTensors(tensors, metadata), "resize/big", "kohya", "fp32").result
    loaded, _ = LikenessLoadLoRA.execute("resize/big.safetensors").result
    cut, report = LikenessResizeLoRA.execute(loaded, "energy", 16, 0.6, 0.2, 0, OTHERS[0]).result
    (small,) = LikenessSaveLoRA.execute(cut, "resize/small", "kohya", "fp32").result
    again, text = LikenessLoadLoRA.execute("resize/small.safetensors").result
    assert json.loads(text)["likeness.trigger"] == "sks" and "likeness.resized" in json.loads(text)
    plot, table, found = LikenessInspectLoRA.execute(again).result
    layers = {one["name"]: one for one in json.loads(found)["layers"]}
    assert set(layers) == {LINEAR, CONV} and all(one["rank"] < 4 for one in layers.values())
    assert plot.shape == (1, 900, 1400, 3) and plot.dtype == torch.float32 and 0 <= plot.min() < plot.max() <= 1
    assert all(f"| {one['name']} | LoRA | {one['rank']} |" in table for one in layers.values())
    assert "| size, MiB |" in report
    assert Path(small).stat().st_size < 0.9 * Path(big).stat().st_size
