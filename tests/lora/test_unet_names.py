"""UNet names both ways. The pairs below are facts of public SD1.5 and SDXL files, not computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.lora.undot import undot
from likeness.lora.unet_names import SD15, SDXL, guess_res_blocks, res_blocks_of, to_diffusers, to_sgm

PAIRS = [
    (SD15, "input_blocks.1.1.proj_in", "down_blocks.0.attentions.0.proj_in"),
    (SD15, "input_blocks.8.1.norm", "down_blocks.2.attentions.1.norm"),
    (SD15, "input_blocks.3.0.op", "down_blocks.0.downsamplers.0.conv"),
    (SD15, "input_blocks.11.0.in_layers.2", "down_blocks.3.resnets.1.conv1"),
    (SD15, "middle_block.1.transformer_blocks.0.attn1.to_q", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
    (SD15, "middle_block.2.emb_layers.1", "mid_block.resnets.1.time_emb_proj"),
    (SD15, "output_blocks.2.1.conv", "up_blocks.0.upsamplers.0.conv"),
    (SD15, "output_blocks.3.1.proj_out", "up_blocks.1.attentions.0.proj_out"),
    (SD15, "output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
    (SD15, "output_blocks.11.0.skip_connection", "up_blocks.3.resnets.2.conv_shortcut"),
    (SD15, "time_embed.2", "time_embedding.linear_2"),
    (SDXL, "input_blocks.4.1.proj_in", "down_blocks.1.attentions.0.proj_in"),
    (SDXL, "input_blocks.8.1.proj_in", "down_blocks.2.attentions.1.proj_in"),
    (SDXL, "output_blocks.0.1.proj_in", "up_blocks.0.attentions.0.proj_in"),
    (SDXL, "output_blocks.5.2.conv", "up_blocks.1.upsamplers.0.conv"),
    (SDXL, "label_emb.0.0", "add_embedding.linear_1"),
    ((1, 1), "input_blocks.3.1.proj_in", "down_blocks.1.attentions.0.proj_in"),
    ((1, 1), "output_blocks.1.2.conv", "up_blocks.0.upsamplers.0.conv"),
]


@pytest.mark.parametrize(("res_blocks", "sgm", "diffusers"), PAIRS)
def test_known_pairs(res_blocks: tuple[int, ...], sgm: str, diffusers: str) -> None:
    """Fails if a block is off by one, or a level's blocks are counted from the wrong end."""
    assert to_diffusers(sgm, res_blocks) == diffusers
    assert to_sgm(diffusers, res_blocks) == sgm
    assert undot(diffusers.replace(".", "_")) == diffusers
    assert undot(sgm.replace(".", "_")) == sgm


def layers_of(res_blocks: list[int]) -> list[str]:
    """Every kind of layer of a UNet with attention everywhere, walked as its forward pass does."""
    names, block = ["input_blocks.0.0", "out.2"], 1
    for level, count in enumerate(res_blocks):
        for _ in range(count):
            names += [f"input_blocks.{block}.0.in_layers.2", f"input_blocks.{block}.1.proj_in"]
            block += 1
        if level < len(res_blocks) - 1:
            names.append(f"input_blocks.{block}.0.op")
            block += 1
    block = 0
    for level, count in enumerate(reversed(res_blocks)):
        for i in range(count + 1):
            names += [f"output_blocks.{block}.0.out_layers.3", f"output_blocks.{block}.1.proj_out"]
            if i == count and level < len(res_blocks) - 1:
                names.append(f"output_blocks.{block}.2.conv")
            block += 1
    return names


@given(st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_every_structure_goes_there_and_back(res_blocks: list[int]) -> None:
    """Fails if two layers get one name, a layer gets none, or the way back leads elsewhere."""
    names = layers_of(res_blocks)
    theirs = [to_diffusers(name, res_blocks) for name in names]
    assert None not in theirs and len(set(theirs)) == len(names)
    everywhere = range(len(res_blocks))
    assert [to_sgm(name or "", res_blocks, everywhere) for name in theirs] == names
    assert res_blocks_of(names) == tuple(res_blocks)


def test_a_layer_that_the_unet_has_not_gets_no_name() -> None:
    """Fails if a file for a deeper UNet were mapped onto a smaller one's layers."""
    assert to_diffusers("input_blocks.12.0.in_layers.2", SD15) is None
    assert to_diffusers("input_blocks.3.1.proj_in", SD15) is None
    assert to_sgm("down_blocks.3.resnets.0.conv1", SDXL) is None
    assert to_sgm("down_blocks.0.resnets.2.conv1", SD15) is None
    assert to_sgm("transformer_blocks.0.attn.to_q", SD15) is None


def test_the_structure_is_guessed_from_attention_alone() -> None:
    """Fails if an attention-only LoRA without metadata were given another family's names."""
    block = "{}.1.transformer_blocks.0.attn2.to_k"
    sd15 = [block.format(f"input_blocks.{n}") for n in (1, 2, 4, 5, 7, 8)]
    assert guess_res_blocks(sd15, 768) == SD15
    assert guess_res_blocks([block.format(f"input_blocks.{n}") for n in (4, 5, 7, 8)], 2048) == SDXL
    assert guess_res_blocks([block.format(f"input_blocks.{n}") for n in (1, 3)], 768) == (1, 1)
    assert guess_res_blocks(["input_blocks.20.1.proj_in"]) is None


def test_no_unet_no_guess() -> None:
    """Fails if a LoRA of another architecture were given a UNet's structure."""
    assert guess_res_blocks(["double_blocks.0.img_attn.qkv"]) is None and guess_res_blocks([]) is None
