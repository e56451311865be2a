"""Where a layer belongs, by its name."""

from __future__ import annotations

import random

import pytest

from likeness.lora.inspection import block_order
from likeness.lora.roles import CROSS, JOINT, SELF, block_of, role_of

UNET = "diffusion_model.input_blocks.4.1.transformer_blocks.1"


@pytest.mark.parametrize(
    ("layer", "role", "block"),
    [
        (f"{UNET}.attn1.to_q", SELF, "input_blocks.4"),
        (f"{UNET}.attn2.to_out.0", CROSS, "input_blocks.4"),
        (f"{UNET}.ff.net.0.proj", "feed-forward", "input_blocks.4"),
        ("diffusion_model.output_blocks.11.0.in_layers.2", "other", "output_blocks.11"),
        ("diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_v", CROSS, "middle_block"),
        ("diffusion_model.time_embed.0", "other", "time_embed"),
        ("diffusion_model.out.2", "other", "out"),
        ("diffusion_model.label_emb.0.0", "other", "label_emb"),
        ("diffusion_model.joint_blocks.7.x_block.attn.qkv", JOINT, "joint_blocks.7"),
        ("diffusion_model.joint_blocks.7.x_block.attn2.qkv", SELF, "joint_blocks.7"),
        ("diffusion_model.joint_blocks.7.context_block.mlp.fc1", "feed-forward", "joint_blocks.7"),
        ("diffusion_model.joint_blocks.7.context_block.adaLN_modulation.1", "other", "joint_blocks.7"),
        ("diffusion_model.double_blocks.0.img_attn.qkv", JOINT, "double_blocks.0"),
        ("diffusion_model.single_blocks.37.linear1", JOINT, "single_blocks.37"),
        ("diffusion_model.single_blocks.37.linear2", "feed-forward", "single_blocks.37"),
        ("diffusion_model.blocks.3.self_attn.q", SELF, "blocks.3"),
        ("diffusion_model.blocks.3.cross_attn.k", CROSS, "blocks.3"),
        ("diffusion_model.blocks.3.ffn.0", "feed-forward", "blocks.3"),
        ("diffusion_model.layers.2.attention.qkv", JOINT, "layers.2"),
        ("diffusion_model.noise_refiner.1.attention.out", JOINT, "noise_refiner.1"),
        ("diffusion_model.transformer_blocks.59.attn.to_q", JOINT, "transformer_blocks.59"),
        ("clip_l.transformer.text_model.encoder.layers.3.self_attn.q_proj", SELF, "clip_l.3"),
        ("clip_g.transformer.text_model.encoder.layers.31.mlp.fc2", "feed-forward", "clip_g.31"),
        ("clip_g.transformer.text_projection", "other", "clip_g"),
        ("t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q", SELF, "t5xxl.0"),
        ("transformer.single_transformer_blocks.3.attn.to_q", JOINT, "single_transformer_blocks.3"),
        ("lora_unet_mystery_0", "other", "lora_unet_mystery_0"),
    ],
)
def test_role_and_block(layer: str, role: str, block: str) -> None:
    """Fails if a layer is counted with others than its own kind, or in another block."""
    assert (role_of(layer), block_of(layer)) == (role, block)


def test_blocks_stand_in_the_models_order() -> None:
    """Fails if block 10 stands before block 2, or the middle after the end."""
    order = ["clip_l.2", "clip_l.10", "t5xxl.0", "time_embed", "input_blocks.2", "input_blocks.10", "middle_block"]
    order += ["output_blocks.0", "out", "double_blocks.9", "joint_blocks.0", "single_blocks.0"]
    shuffled = random.Random(0).sample(order, len(order))
    assert sorted(shuffled, key=block_order) == order
