from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers.lora import injected
from likeness.trainers.targets import PREFIX, PRESETS, adaptable_layers, matched_layers

ATTENTION = [
    "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "input_blocks.1.1.transformer_blocks.0.attn2.to_out.0",
    "joint_blocks.3.context_block.attn.qkv",
    "joint_blocks.3.x_block.attn2.proj",
    "encoder.block.0.layer.0.SelfAttention.q",
    "double_blocks.0.img_attn.qkv",
    "single_blocks.7.linear1",
    "blocks.4.cross_attn.k_img",
    "transformer_blocks.9.attn.add_q_proj",
    "layers.2.attention.out",
]
FEED_FORWARD = [
    "input_blocks.1.1.transformer_blocks.0.ff.net.0.proj",
    "joint_blocks.3.x_block.mlp.fc1",
    "encoder.block.0.layer.1.DenseReluDense.wi_0",
    "text_model.encoder.layers.3.mlp.fc2",
    "double_blocks.0.txt_mlp.2",
    "single_blocks.7.linear2",
    "blocks.4.ffn.0",
    "transformer_blocks.9.img_mlp.net.2",
    "layers.2.feed_forward.w1",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2",
]
NEITHER = [
    "input_blocks.1.1.proj_in",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.1.0.emb_layers.1",
    "down_blocks.0.attentions.0.proj_in",
    "t_embedder.mlp.0",
    "y_embedder.mlp.2",
    "time_embed.0",
    "double_blocks.0.img_mod.lin",
    "single_blocks.7.modulation.lin",
    "joint_blocks.3.x_block.adaLN_modulation.1",
    "out.2",
    "img_in",
]


@pytest.mark.parametrize("name", ATTENTION + FEED_FORWARD + NEITHER)
def test_presets_know_the_names_of_the_field(name: str) -> None:
    """Fails if a layer of SD, SD3, Flux, Wan, Qwen or Lumina is counted to the wrong preset."""
    canonical = "diffusion_model." + name
    assert PRESETS["attention"](canonical) == (name in ATTENTION)
    assert PRESETS["attention+feed-forward"](canonical) == (name in ATTENTION + FEED_FORWARD)
    assert PRESETS["all"](canonical)
    assert PRESETS["decoder"](canonical) == (not name.startswith(("input_blocks", "time_embed")))


@pytest.mark.parametrize(
    ("name", "learns"),
    [
        ("middle_block.1.transformer_blocks.0.attn2.to_k", True),
        ("output_blocks.3.1.proj_in", True),
        ("out.2", True),
        ("label_emb.0.0", False),
        ("input_blocks.0.0", False),
        ("time_embed.2", False),
    ],
)
def test_a_unets_decoder(name: str, learns: bool) -> None:
    """Fails if a layer learns for whose sake the whole way down would need gradients, or one of the way up does not."""
    assert PRESETS["decoder"]("diffusion_model." + name) == learns


class UNet(nn.Module):
    """Two ways from the input to the output, as a UNet has: through the middle and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.time_embed, self.input_blocks, self.middle_block, self.output_blocks = (
            nn.Sequential(nn.Linear(4, 4)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        down = self.input_blocks(x + self.time_embed(torch.ones(4)))
        return down, self.output_blocks(self.middle_block(down) + down)


def test_the_way_down_needs_no_gradient() -> None:
    """Fails if something before the decoder learns: then each step would go back through the encoder, and keep it."""
    net = UNet()
    layers = matched_layers({PREFIX: net}, "decoder")
    with injected({PREFIX: net}, layers, rank=2, alpha=2.0, seed=0):
        down, out = net(torch.ones(1, 4))
        assert not down.requires_grad and out.requires_grad
    with injected({PREFIX: net}, matched_layers({PREFIX: net}, "all"), rank=2, alpha=2.0, seed=0):
        assert net(torch.ones(1, 4))[0].requires_grad


def test_matched_layers_of_the_toy(toy: Any) -> None:
    """Fails if a preset takes other layers than it names, or a regular expression is not searched for."""
    modules = {PREFIX: toy().module}
    assert len(matched_layers(modules, "attention")) == 4
    assert len(matched_layers(modules, "attention+feed-forward")) == 8
    assert matched_layers(modules, "decoder") == matched_layers(modules, "all")
    assert len(matched_layers(modules, "all")) == 11 == len(adaptable_layers(modules))
    assert matched_layers(modules, "custom", r"\.1\.conv$") == ("diffusion_model.transformer_blocks.1.conv",)


def test_errors_say_what_could_be_matched(toy: Any) -> None:
    """Fails if a pattern that matches nothing trains nothing in silence."""
    modules = {PREFIX: toy().module}
    with pytest.raises(ValueError, match=r"'attn9' matches no layer.*diffusion_model\."):
        matched_layers(modules, "custom", "attn9")
    with pytest.raises(ValueError, match="no regular expression"):
        matched_layers(modules, "custom", "(")
    with pytest.raises(ValueError, match="Unknown target 'heads'"):
        matched_layers(modules, "heads")
