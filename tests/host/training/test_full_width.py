"""A Stable Diffusion 1.5 of full width (860 million random weights) is trained and saved like any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from likeness.devtools import random_checkpoints
from likeness.devtools.server import Server
from likeness.experiments.client import Client

SD15 = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "legacy": False,
}
PREFIX = "model.diffusion_model."


@pytest.fixture(scope="module")
def full_width(comfy: SimpleNamespace, base: Path, tiny_checkpoint: Path) -> str:
    """A bf16 checkpoint with the UNet of SD1.5 in random weights, and tiny-unet's text encoder and VAE."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    unet = UNetModel(**SD15, dtype=torch.bfloat16, device="meta", operations=comfy.ops.disable_weight_init)
    shapes = {PREFIX + name: tuple(parameter.shape) for name, parameter in unet.named_parameters()}
    with safe_open(tiny_checkpoint, "pt") as file:
        others = {name: file.get_tensor(name) for name in file.keys() if not name.startswith(PREFIX)}  # noqa: SIM118
    path = base / "models" / "checkpoints" / "full-width.safetensors"
    count = random_checkpoints.write(path, shapes, others)
    assert count - sum(tensor.numel() for tensor in others.values()) == 859_520_964  # the published size
    return path.name


def test_it_trains_and_its_kohya_file_loads_whole(
    client: Client, training: Callable, picture_of: Callable, full_width: str, server: Server, base: Path
) -> None:
    """Fails if a real model's layers are not all named as the host's LoraLoader names them, or none is trained."""
    attention = {"targets": "attention"}
    graph = training(checkpoint=full_width, steps=2, batch_size=1, rank=4, run_name="full-width", options=attention)
    inputs = {"lora": ["train", 1], "filename": "likeness/full-width", "naming": "kohya", "dtype": "fp16"}
    graph["save"] = {"class_type": "LikenessSaveLoRA", "inputs": inputs}
    client.run(graph)

    with safe_open(base / "models" / "loras" / "likeness" / "full-width.safetensors", "pt") as file:
        names = set(file.keys())
        ups = [file.get_tensor(name) for name in names if name.endswith("lora_up.weight")]
    assert len(ups) == 16 * 8  # 16 transformers, q, k, v and out of two attentions each
    assert sum(bool(up.any()) for up in ups) == len(ups)
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight" in names
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0.alpha" in names

    log_before = len(server.log_text())
    load = {"model": ["model", 0], "lora_name": "likeness/full-width.safetensors", "strength_model": 1.0}
    graph = picture_of(
        {"model": graph["model"], "lora": {"class_type": "LoraLoaderModelOnly", "inputs": load}}, ("lora", 0)
    )
    graph["picture-draw"]["inputs"]["steps"] = 1
    client.run(graph)
    assert "not loaded" not in server.log_text()[log_before:].lower()
    client.free()
