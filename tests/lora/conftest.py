"""Small LoRAs with real layer names, for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch

SD15_LAYERS = {
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q": (8, 8),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0": (8, 8),
    "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k": (8, 768),
    "diffusion_model.input_blocks.8.1.transformer_blocks.0.ff.net.0.proj": (16, 8),
    "diffusion_model.input_blocks.2.1.proj_in": (8, 8, 1, 1),
    "diffusion_model.input_blocks.3.0.op": (8, 8, 3, 3),
    "diffusion_model.input_blocks.4.0.skip_connection": (8, 4, 1, 1),
    "diffusion_model.input_blocks.11.0.in_layers.2": (8, 8, 3, 3),
    "diffusion_model.input_blocks.11.0.emb_layers.1": (8, 16),
    "diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v": (8, 768),
    "diffusion_model.middle_block.2.out_layers.3": (8, 8, 3, 3),
    "diffusion_model.output_blocks.2.1.conv": (8, 8, 3, 3),
    "diffusion_model.output_blocks.5.2.conv": (8, 8, 3, 3),
    "diffusion_model.output_blocks.11.1.transformer_blocks.0.attn1.to_v": (8, 8),
    "diffusion_model.time_embed.0": (16, 8),
    "diffusion_model.out.2": (4, 8, 3, 3),
    "clip_l.transformer.text_model.encoder.layers.0.self_attn.q_proj": (8, 768),
    "clip_l.transformer.text_model.encoder.layers.11.mlp.fc1": (16, 768),
}
SDXL_LAYERS = {
    "diffusion_model.input_blocks.4.1.transformer_blocks.1.attn1.to_q": (8, 8),
    "diffusion_model.input_blocks.8.1.transformer_blocks.9.attn2.to_k": (8, 2048),
    "diffusion_model.middle_block.1.transformer_blocks.9.ff.net.2": (8, 16),
    "diffusion_model.output_blocks.0.1.proj_out": (8, 8),
    "diffusion_model.output_blocks.2.2.conv": (8, 8, 3, 3),
    "diffusion_model.output_blocks.5.2.conv": (8, 8, 3, 3),
    "diffusion_model.label_emb.0.0": (16, 8),
    "clip_l.transformer.text_model.encoder.layers.3.self_attn.k_proj": (8, 8),
    "clip_g.transformer.text_model.encoder.layers.31.self_attn.out_proj": (8, 8),
}
SD3_LAYERS = {
    "diffusion_model.joint_blocks.0.x_block.attn.qkv": (24, 8),
    "diffusion_model.joint_blocks.0.context_block.attn.qkv": (24, 8),
    "diffusion_model.joint_blocks.1.x_block.mlp.fc1": (32, 8),
    "diffusion_model.joint_blocks.1.context_block.adaLN_modulation.1": (16, 8),
    "diffusion_model.final_layer.adaLN_modulation.1": (16, 8),
}
FLUX_LAYERS = {
    "diffusion_model.double_blocks.0.img_attn.qkv": (24, 8),
    "diffusion_model.double_blocks.0.txt_mod.lin": (48, 8),
    "diffusion_model.single_blocks.1.linear1": (56, 8),
    "diffusion_model.single_blocks.1.linear2": (8, 40),
    "diffusion_model.final_layer.adaLN_modulation.1": (16, 8),
}
FAMILIES = {
    "sd15": (SD15_LAYERS, (2, 2, 2, 2)),
    "sdxl": (SDXL_LAYERS, (2, 2, 2)),
    "sd3": (SD3_LAYERS, None),
    "flux": (FLUX_LAYERS, None),
}


def make_deltas(layers: Iterable[tuple[str, tuple[int, ...]]], rank: int = 2, alpha: float = 3.0) -> dict:
    """Random ΔW for every layer, float32; a fixed seed."""
    from likeness.lora.delta import LowRankDelta

    generator = torch.Generator().manual_seed(7)
    out = {}
    for name, shape in layers:
        conv = len(shape) == 4
        up = torch.randn(shape[0], rank, *([1, 1] if conv else []), generator=generator)
        down = torch.randn(rank, *shape[1:], generator=generator)
        out[name] = LowRankDelta(up, down, alpha / rank, "conv" if conv else "linear")
    return out


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> tuple[dict[str, tuple[int, ...]], tuple[int, ...] | None]:
    """(layers, res blocks) of each architecture in turn."""
    return FAMILIES[request.param]


@pytest.fixture
def families() -> dict[str, tuple[dict[str, tuple[int, ...]], tuple[int, ...] | None]]:
    """Name -> (layers, res blocks) of every architecture."""
    return FAMILIES


@pytest.fixture
def sd15() -> dict[str, tuple[int, ...]]:
    return SD15_LAYERS


@pytest.fixture
def sdxl() -> dict[str, tuple[int, ...]]:
    return SDXL_LAYERS


@pytest.fixture
def deltas() -> Callable[..., dict]:
    return lambda layers, **options: make_deltas(layers.items(), **options)
