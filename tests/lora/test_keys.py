"""Naming schemes: out and back, as others write them, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.lora.delta import LowRankDelta
from likeness.lora.keys import SCHEMES, canonicalise, check_fit, from_deltas, rename, to_deltas

Q = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
UP, DOWN = torch.arange(6.0).reshape(3, 2), torch.arange(10.0).reshape(2, 5) - 3


def same(ours: dict[str, LowRankDelta], theirs: dict[str, LowRankDelta]) -> None:
    assert set(ours) == set(theirs)
    for layer, delta in ours.items():
        assert torch.allclose(delta.dense().flatten(), theirs[layer].dense().flatten(), atol=1e-5), layer


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("known", [True, False])
def test_delta_is_equal_through_every_scheme(family, deltas, scheme: str, known: bool) -> None:
    """Fails if any layer is renamed to another one, its rows are split wrongly, or alpha is lost on the way."""
    layers, res_blocks = family
    before = deltas(layers)
    written = rename(from_deltas(before), scheme, res_blocks)
    found = canonicalise(written, layers if known else None, res_blocks=res_blocks)
    assert found.unmatched == () and found.scheme == scheme
    same(to_deltas(found.tensors), before)


@given(
    rank=st.integers(1, 4),
    alpha=st.floats(0.1, 64),
    pieces=st.sets(st.sampled_from("qkv"), min_size=1),
    flux=st.booleans(),
)
def test_pieces_of_a_fused_layer_join_into_their_stack(rank: int, alpha: float, pieces: set[str], flux: bool) -> None:
    """Fails if a piece lands in another's rows: the whole's ΔW must be the pieces' ΔW one above the other."""
    root = "single_transformer_blocks" if flux else "transformer_blocks"
    width, tensors, stacked = 6, {}, {letter: torch.zeros(6, 4) for letter in "qkv"}
    for letter in sorted(pieces):
        up, down = torch.randn(width, rank), torch.randn(rank, 4)
        base = f"transformer.{root}.0.attn.to_{letter}"
        tensors |= {f"{base}.lora_B.weight": up, f"{base}.lora_A.weight": down, f"{base}.alpha": torch.tensor(alpha)}
        stacked[letter] = up @ down * alpha / rank
    found = to_deltas(canonicalise(tensors).tensors)
    layer = "diffusion_model.single_blocks.0.linear1" if flux else "diffusion_model.joint_blocks.0.x_block.attn.qkv"
    whole = torch.cat([stacked[letter] for letter in "qkv"])
    dense = found[layer].dense()
    assert list(found) == [layer] and dense.shape[0] == (7 if flux else 3) * width
    assert torch.allclose(dense[: 3 * width], whole, atol=1e-4 * alpha) and not dense[3 * width :].any()


@pytest.mark.parametrize(
    ("base", "up", "down"),
    [
        (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            ".lora_up.weight",
            ".lora_down.weight",
        ),
        (
            "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
            "_lora_up.weight",
            "_lora_down.weight",
        ),
        ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q", ".lora_up.weight", ".lora_down.weight"),
        ("lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", ".lora_up.weight", ".lora_down.weight"),
        (
            "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q",
            "_lora.up.weight",
            "_lora.down.weight",
        ),
        (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q",
            "_lora.up.weight",
            "_lora.down.weight",
        ),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", ".lora.up.weight", ".lora.down.weight"),
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", ".lora_B.weight", ".lora_A.weight"),
        (
            "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            ".lora_B.weight",
            ".lora_A.weight",
        ),
        (
            "unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
            ".lora_B.default.weight",
            ".lora_A.default.weight",
        ),
        (Q, ".lora_up.weight", ".lora_down.weight"),
        (Q, ".lora_B", ".lora_A"),
        (Q, ".lora_B.default.weight", ".lora_A.default.weight"),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_names_that_other_programs_write(base: str, up: str, down: str, known: bool) -> None:
    """Fails if a scheme that public files have is not read, or its two factors are exchanged."""
    layers = {Q: (3, 5), "diffusion_model.input_blocks.3.0.op": (1, 1, 3, 3)}
    layers |= {f"diffusion_model.input_blocks.{n}.0.in_layers.2": (1, 1, 3, 3) for n in (1, 2, 4)}
    found = canonicalise({base + up: UP, base + down: DOWN}, layers if known else None)
    assert found.unmatched == ()
    delta = to_deltas(found.tensors)[Q]
    assert torch.equal(delta.dense(), UP @ DOWN)


def test_old_diffusers_out_projection_has_its_number_back() -> None:
    """Fails if `to_out` (without 0) of older diffusers files were unmatched."""
    base = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora"
    found = canonicalise({f"{base}.up.weight": UP, f"{base}.down.weight": DOWN})
    layer = "diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_out.0"
    assert list(to_deltas(found.tensors)) == [layer]


@pytest.mark.parametrize(
    ("base", "layer"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"),
        ("lora_te2_text_model_encoder_layers_30_mlp_fc1", "clip_g.transformer.text_model.encoder.layers.30.mlp.fc1"),
        (
            "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
            "t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
        ),
        (
            "text_encoder_2.text_model.encoder.layers.0.mlp.fc1",
            "clip_g.transformer.text_model.encoder.layers.0.mlp.fc1",
        ),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",) * 2,
    ],
)
def test_text_encoders(base: str, layer: str) -> None:
    """Fails if SDXL's two text encoders were exchanged, or T5's layers unknown."""
    found = canonicalise({f"{base}.lora_up.weight": UP, f"{base}.lora_down.weight": DOWN})
    assert found.unmatched == () and list(to_deltas(found.tensors)) == [layer.removeprefix("text_encoders.")]


def test_sd2_text_encoder_is_told_by_its_width() -> None:
    """Fails if an SD2 file's text encoder were taken for SD1's, which the host would then leave out."""
    base = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    found = canonicalise(
        {f"{base}.lora_up.weight": torch.zeros(1024, 2), f"{base}.lora_down.weight": torch.ones(2, 1024)}
    )
    assert list(to_deltas(found.tensors)) == ["clip_h.transformer.text_model.encoder.layers.0.self_attn.q_proj"]


def test_other_adapters_keep_their_tensors_but_are_no_low_rank_delta() -> None:
    """Fails if LoHa, DoRA or full differences were dropped, or taken for a plain LoRA."""
    base = "lora_unet_mid_block_attentions_0_proj_in"
    layer = "diffusion_model.middle_block.1.proj_in"
    for suffix in (
        "hada_w1_a",
        "lokr_w1",
        "oft_blocks",
        "diff",
        "diff_b",
        "dora_scale",
        "set_weight",
        "reshape_weight",
    ):
        found = canonicalise({f"{base}.{suffix}": UP})
        assert list(found.tensors) == [f"{layer}.{suffix}"]
        with pytest.raises(ValueError, match=rf"{layer}.*{suffix}"):
            to_deltas(found.tensors)
    peft_dora = canonicalise({"unet.mid_block.attentions.0.proj_in.lora_magnitude_vector.default.weight": UP[:, 0]})
    assert list(peft_dora.tensors) == [f"{layer}.dora_scale"]


def test_a_tucker_core_is_multiplied_in() -> None:
    """Fails if LoCon's lora_mid were ignored: ΔW must be the sum over both ranks, written out."""
    up, mid, down = torch.randn(4, 2, 1, 1), torch.randn(2, 3, 3, 3), torch.randn(3, 5, 1, 1)
    base = "lora_unet_mid_block_resnets_0_conv1"
    tensors = {f"{base}.lora_up.weight": up, f"{base}.lora_mid.weight": mid, f"{base}.lora_down.weight": down}
    (delta,) = to_deltas(canonicalise(tensors).tensors).values()
    expected = torch.einsum("oa,abyx,bi->oiyx", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    assert torch.allclose(delta.dense(), expected * (3 / 2) * (2 / 3), atol=1e-5)


def test_kohya_names_are_those_of_sd_scripts(sd15, sdxl, deltas) -> None:
    """Fails if SD1 were written with the checkpoint's names, or SDXL with diffusers'."""
    keys = rename(from_deltas(deltas(sd15)), "kohya")
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0.lora_up.weight" in keys
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v.alpha" in keys
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight" in keys
    keys = rename(from_deltas(deltas(sdxl)), "kohya")
    assert "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_up.weight" in keys
    assert "lora_te1_text_model_encoder_layers_3_self_attn_k_proj.lora_up.weight" in keys
    assert "lora_te2_text_model_encoder_layers_31_self_attn_out_proj.lora_up.weight" in keys


def test_half_a_lora_is_refused_by_name() -> None:
    """Fails if a file cut short in the export loaded as if nothing were missing."""
    with pytest.raises(ValueError, match=r"input_blocks\.1\.1.*no lora_down"):
        canonicalise({f"{Q}.lora_up.weight": UP})
    with pytest.raises(ValueError, match="rank 2 and down of rank 3"):
        canonicalise({f"{Q}.lora_up.weight": UP, f"{Q}.lora_down.weight": torch.zeros(3, 5)})


def test_a_layer_named_twice_is_refused() -> None:
    """Fails if one of two LoRAs of a layer silently won."""
    other = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    tensors = {f"{b}.{s}": t for b in (Q, other) for s, t in (("lora_up.weight", UP), ("lora_down.weight", DOWN))}
    with pytest.raises(ValueError, match="twice"):
        canonicalise(tensors)


def test_unknown_layers_are_reported_not_dropped(sd15) -> None:
    """Fails if a key that means no layer of the MODEL vanished without a word."""
    key = "lora_unet_down_blocks_3_attentions_0_proj_in.lora_up.weight"
    partner = "lora_unet_down_blocks_3_attentions_0_proj_in.lora_down.weight"
    found = canonicalise({key: UP, partner: DOWN, "optimizer.state": UP}, sd15)
    assert set(found.unmatched) == {key, partner, "optimizer.state"} and found.tensors == {}


def test_a_lora_of_another_size_names_the_layer_and_both_sizes(sd15, deltas) -> None:
    """Fails if an SD2 LoRA (text width 1024) passed for SD1.5 (768), the mismatch that public files have."""
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    tensors = from_deltas(deltas(sd15))
    check_fit(tensors, sd15)
    tensors[f"{layer}.lora_down.weight"] = torch.zeros(2, 1024)
    with pytest.raises(ValueError, match=rf"{layer}.*8×1024.*8×768"):
        check_fit(tensors, sd15)


def test_matrices_take_the_weights_dimensions(sd15) -> None:
    """Fails if a 1×1 convolution written as a matrix kept two dimensions where the MODEL's weight has four."""
    base = "lora_unet_down_blocks_0_attentions_1_proj_in"
    tensors = {f"{base}.lora_up.weight": torch.ones(8, 2), f"{base}.lora_down.weight": torch.ones(2, 8)}
    (delta,) = to_deltas(canonicalise(tensors, sd15, res_blocks=(2, 2, 2, 2)).tensors).values()
    assert delta.kind == "conv" and delta.shape == (8, 8, 1, 1)


def test_names_without_a_form_are_refused() -> None:
    """Fails if a layer were left out of a file because the scheme has no name for it."""
    delta = LowRankDelta(UP, DOWN, 1.0, "linear")
    t5 = "t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q"
    for layer in (t5, "diffusion_model.blocks.0.cross_attn.k"):
        with pytest.raises(ValueError, match="no name in the naming diffusers"):
            rename(from_deltas({layer: delta}), "diffusers")
    with pytest.raises(ValueError, match="unknown naming scheme"):
        rename({}, "peft")


@pytest.mark.host  # not that it needs the host, but importing diffusers takes long
def test_diffusers_itself_loads_the_diffusers_scheme() -> None:
    """Fails if the diffusers library reads another ΔW, or leaves a layer out, of a file in that scheme."""
    diffusers = pytest.importorskip("diffusers")
    from likeness.lora.unet_names import to_sgm

    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=16,
        attention_head_dim=8,
    )
    layers = {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            layers[f"diffusion_model.{to_sgm(name, (1, 1))}"] = (name, tuple(module.weight.shape))
    deltas = {}
    for layer, (_, shape) in layers.items():
        up = torch.randn(shape[0], 2, *([1, 1] if len(shape) == 4 else []))
        deltas[layer] = LowRankDelta(up, torch.randn(2, *shape[1:]), 1.5, "conv" if len(shape) == 4 else "linear")
    unet.load_lora_adapter(rename(from_deltas(deltas), "diffusers", (1, 1)), prefix="unet")
    for layer, (name, shape) in layers.items():
        module = unet.get_submodule(name)
        assert torch.allclose(module.get_delta_weight("default_0").reshape(shape), deltas[layer].dense(), atol=1e-4), (
            layer
        )
