"""Names against the host itself: its own key maps, its own loader, its own arithmetic, for real architectures.

The models are made on the meta device, so they cost nothing; the host then detects them as it does a checkpoint.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.lora.delta import LowRankDelta
from likeness.lora.files import read_lora
from likeness.lora.keys import SCHEMES, canonicalise, from_deltas, to_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors
from likeness.lora.unet_names import res_blocks_of, to_diffusers, to_sgm

pytestmark = pytest.mark.host

_UNET = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "use_spatial_transformer": True}
_UNET |= {"legacy": False, "num_heads": 4, "num_head_channels": -1}
UNETS = {
    "sd15": {
        "num_res_blocks": [2, 2, 2, 2],
        "channel_mult": [1, 2, 4, 4],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
        "transformer_depth_middle": 1,
        "context_dim": 768,
    },
    "sdxl": {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": [1, 2, 4],
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,  # real: it is what tells SDXL
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
    "tiny-unet": {
        "num_res_blocks": [1, 1],
        "channel_mult": [1, 1],
        "transformer_depth": [1, 1],
        "transformer_depth_output": [1, 1, 1, 1],
        "transformer_depth_middle": -1,
        "context_dim": 768,
    },
}
ARCHITECTURES = [*UNETS, "sd3", "flux"]
CLIP_INNER = {"self_attn.q_proj": (6, 6), "self_attn.out_proj": (6, 6), "mlp.fc1": (24, 6), "mlp.fc2": (6, 24)}


def build(architecture: str) -> Any:
    """A model of the host with no weights, detected as the host detects a checkpoint of it."""
    import comfy.ldm.flux.model
    import comfy.ldm.modules.diffusionmodules.mmdit
    import comfy.ldm.modules.diffusionmodules.openaimodel
    import comfy.model_base
    import comfy.model_detection
    import comfy.ops

    options: dict[str, Any] = {"device": "meta", "dtype": torch.float32, "operations": comfy.ops.disable_weight_init}
    if architecture == "sd3":
        kind = comfy.model_base.SD3
        diffusion_model = comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper(
            input_size=None, patch_size=2, in_channels=16, depth=3, qk_norm="rms", adm_in_channels=2048,
            context_embedder_config={"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 192}},
            num_patches=16, pos_embed_max_size=4, x_block_self_attn_layers=[0, 1], **options,
        )  # fmt: skip
    elif architecture == "flux":
        kind = comfy.model_base.Flux
        diffusion_model = comfy.ldm.flux.model.Flux(
            in_channels=16, out_channels=16, patch_size=2, vec_in_dim=768, context_in_dim=64, hidden_size=256,
            mlp_ratio=4.0, num_heads=2, depth=1, depth_single_blocks=2, axes_dim=[16, 56, 56], theta=10000,
            qkv_bias=True, guidance_embed=True, **options,
        )  # fmt: skip
    else:
        kind = comfy.model_base.BaseModel
        network = comfy.ldm.modules.diffusionmodules.openaimodel.UNetModel
        diffusion_model = network(**_UNET, **UNETS[architecture], **options)
    model = kind.__new__(kind)
    torch.nn.Module.__init__(model)
    model.diffusion_model = diffusion_model
    config = comfy.model_detection.detect_unet_config(diffusion_model.state_dict(), "")
    model.model_config = SimpleNamespace(unet_config=config)
    return model


def text_encoders(architecture: str) -> Any:
    """What the host's loader asks of a CLIP: its layers' names."""
    names = {"sdxl": ("clip_l", "clip_g"), "sd3": ("clip_l", "clip_g"), "flux": ("clip_l",)}.get(
        architecture, ("clip_l",)
    )
    state = {
        f"{name}.transformer.text_model.encoder.layers.{i}.{inner}.weight": torch.empty(shape, device="meta")
        for name in names
        for i in range(2)
        for inner, shape in CLIP_INNER.items()
    }
    return SimpleNamespace(state_dict=lambda: state)


def layers_of(*models: Any) -> dict[str, tuple[int, ...]]:
    """Every layer that a LoRA can change: matrices and convolutions. SD3's pos_embed and norms are none."""
    out = {}
    for model in models:
        for key, tensor in model.state_dict().items():
            if key.endswith(".weight") and tensor.ndim in (2, 4):
                out[key.removesuffix(".weight")] = tuple(tensor.shape)
    return out


def make_deltas(layers: dict[str, tuple[int, ...]]) -> dict[str, LowRankDelta]:
    """Rank 1, so that the largest architecture stays small; alpha 3, so that scale matters."""
    generator, out = torch.Generator().manual_seed(5), {}
    for name, shape in layers.items():
        conv = len(shape) == 4
        up = torch.randn(shape[0], 1, *([1, 1] if conv else []), generator=generator)
        down = torch.randn(1, *shape[1:], generator=generator)
        out[name] = LowRankDelta(up, down, 3.0, "conv" if conv else "linear")
    return out


@pytest.fixture(scope="module", params=ARCHITECTURES)
def world(request: pytest.FixtureRequest, comfy: Any) -> SimpleNamespace:
    model, clip = build(request.param), text_encoders(request.param)
    layers = layers_of(model, clip)
    structure = UNETS.get(request.param, {}).get("num_res_blocks")
    return SimpleNamespace(
        name=request.param, model=model, clip=clip, layers=layers, deltas=make_deltas(layers), structure=structure
    )


def host_deltas(world: SimpleNamespace, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What the host's own LoRA loader adds to each weight."""
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(world.model, {})
    keys = comfy.lora.model_lora_keys_clip(world.clip, keys)
    out: dict[str, torch.Tensor] = {}
    for target, patch in comfy.lora.load_lora(tensors, keys).items():
        name, offset, function = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
        layer = name.removesuffix(".weight")
        weight = out.get(layer, torch.zeros(world.layers[layer]))
        out[layer] = comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, function)], weight, name)
    return out


@pytest.mark.parametrize("naming", SCHEMES)
def test_the_host_reads_every_key_and_computes_the_same(
    world: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, naming: str
) -> None:
    """Fails if the host leaves one key unmatched, or one layer gets another ΔW than ours. EVERY layer is compared."""
    metadata = {"likeness.res_blocks": json.dumps(world.structure)} if world.structure else {}
    path = tmp_path / "a.safetensors"
    save_lora(path, LoraTensors(from_deltas(world.deltas), metadata), naming, "fp32")
    tensors = read_lora(path)[0]
    with caplog.at_level(logging.WARNING):
        found = host_deltas(world, tensors)
    assert "lora key not loaded" not in caplog.text
    assert set(found) == set(world.deltas)
    for layer, delta in world.deltas.items():
        dense = delta.dense().reshape(world.layers[layer])
        assert (found[layer] - dense).abs().max() <= 1e-5 * dense.abs().max(), layer
    ours = to_deltas(load_lora(path, world.layers))
    assert set(ours) == set(world.deltas)
    for layer, delta in world.deltas.items():
        assert torch.allclose(ours[layer].dense(), delta.dense(), atol=1e-4), layer


@pytest.mark.parametrize("naming", SCHEMES)
def test_attention_alone_needs_no_metadata(world: SimpleNamespace, tmp_path: Path, caplog, naming: str) -> None:
    """Fails if a LoRA of the host's own trainer (no metadata) with the usual targets is written under wrong names."""
    attention = {k: d for k, d in world.deltas.items() if "attn" in k and k.startswith("diffusion_model.")}
    save_lora(tmp_path / "a.safetensors", from_deltas(attention), naming, "fp32")
    found = host_deltas(world, read_lora(tmp_path / "a.safetensors")[0])
    assert "lora key not loaded" not in caplog.text and set(found) == set(attention)
    again = to_deltas(canonicalise(read_lora(tmp_path / "a.safetensors")[0], world.layers).tensors)
    assert set(again) == set(attention)


def test_every_name_in_the_hosts_map_is_read(world: SimpleNamespace) -> None:
    """Fails if the host knows a name of a layer that we do not, or take for another layer: all prefixes it maps."""
    import comfy.lora

    keys = comfy.lora.model_lora_keys_unet(world.model, {})
    checked = 0
    for name, target in keys.items():
        whole, rows = (target, None) if isinstance(target, str) else (target[0], target[1])
        layer = whole.removesuffix(".weight")
        if layer not in world.layers:
            continue  # norms, biases, and names the host makes up for layers that this model lacks
        shape = world.layers[layer]
        height = shape[0] if rows is None else rows[2]
        up = torch.ones(height, 1, *([1, 1] if len(shape) == 4 else []))
        pair = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": torch.ones(1, *shape[1:])}
        found = canonicalise(pair, world.layers)
        assert found.unmatched == (), name
        assert list(to_deltas(found.tensors)) == [layer], name
        if rows is not None:
            dense = to_deltas(found.tensors)[layer].dense()
            assert dense.shape[0] == shape[0], name
            assert dense[rows[1] : rows[1] + rows[2]].all() and dense.sum() == rows[2] * shape[1], name
        checked += 1
    assert checked > len([k for k in world.layers if k.startswith("diffusion_model.")])


@pytest.mark.parametrize("architecture", list(UNETS))
def test_our_map_is_the_hosts_map(comfy: Any, architecture: str) -> None:
    """Fails if any layer of the UNet has another diffusers name than in comfy.utils.unet_to_diffusers."""
    import comfy.utils

    model = build(architecture)
    names = {k.removeprefix("diffusion_model.").rpartition(".")[0] for k in model.state_dict()}
    structure = res_blocks_of(names)
    assert structure == tuple(UNETS[architecture]["num_res_blocks"])
    theirs = comfy.utils.unet_to_diffusers(model.model_config.unet_config)
    pairs = {(ours.rpartition(".")[0], theirs_name.rpartition(".")[0]) for theirs_name, ours in theirs.items()}
    known = {ours for ours, _ in pairs}
    compared = 0
    for ours, diffusers in pairs:
        if ours in names and not diffusers.startswith("class_embedding"):
            assert to_diffusers(ours, structure) == diffusers
            assert to_sgm(diffusers, structure) == ours
            compared += 1
    assert compared > 50 and names <= known


KOHYA = ("lora_up.weight", "lora_down.weight", "alpha")
PEFT = ("lora_B.weight", "lora_A.weight", None)
LOKR = ("lokr_w1", "lokr_w2", "alpha")
TRAINERS: dict[str, tuple[str, tuple[str, str, str | None], list[str]]] = {
    "sd-scripts SD1.5": ("sd15", KOHYA, [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_mid_block_attentions_0_proj_in",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ]),
    "sd-scripts SDXL": ("sdxl", KOHYA, [
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj",
        "lora_unet_output_blocks_5_1_proj_out",
        "lora_unet_input_blocks_1_0_in_layers_2",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
    ]),
    "sd-scripts SD3": ("sd3", KOHYA, [
        "lora_unet_joint_blocks_0_x_block_attn_qkv",
        "lora_unet_joint_blocks_1_context_block_mlp_fc1",
        "lora_unet_joint_blocks_0_x_block_attn2_qkv",
        "lora_unet_joint_blocks_2_x_block_adaLN_modulation_1",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
        "lora_te2_text_model_encoder_layers_1_mlp_fc1",
    ]),
    "sd-scripts Flux": ("flux", KOHYA, [
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_double_blocks_0_txt_mlp_0",
        "lora_unet_double_blocks_0_img_mod_lin",
        "lora_unet_single_blocks_0_linear1",
        "lora_unet_single_blocks_1_modulation_lin",
        "lora_te1_text_model_encoder_layers_1_mlp_fc2",
    ]),
    "diffusers SD3": ("sd3", PEFT, [
        "transformer.transformer_blocks.0.attn.to_q",
        "transformer.transformer_blocks.0.attn.to_v",
        "transformer.transformer_blocks.1.attn.add_k_proj",
        "transformer.transformer_blocks.1.attn.to_add_out",
        "transformer.transformer_blocks.0.attn2.to_out.0",
        "transformer.transformer_blocks.0.ff.net.0.proj",
    ]),
    "peft SD3": ("sd3", PEFT, [
        "base_model.model.transformer_blocks.0.attn.to_k",
        "base_model.model.transformer_blocks.2.ff.net.2",
    ]),
    "ai-toolkit Flux": ("flux", PEFT, [
        "transformer.transformer_blocks.0.attn.to_q",
        "transformer.transformer_blocks.0.attn.add_v_proj",
        "transformer.transformer_blocks.0.norm1_context.linear",
        "transformer.transformer_blocks.0.ff_context.net.2",
        "transformer.single_transformer_blocks.0.attn.to_k",
        "transformer.single_transformer_blocks.0.proj_mlp",
        "transformer.single_transformer_blocks.1.proj_out",
        "transformer.single_transformer_blocks.1.norm.linear",
    ]),
    "OneTrainer SDXL": ("sdxl", KOHYA, [
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_up_blocks_0_attentions_2_transformer_blocks_9_attn2_to_out_0",
        "lora_unet_down_blocks_0_resnets_1_conv2",
        "lora_unet_add_embedding_linear_1",
        "lora_te2_text_model_encoder_layers_0_self_attn_out_proj",
    ]),
    "OneTrainer SD3": ("sd3", KOHYA, [
        "lora_transformer_transformer_blocks_0_attn_to_q",
        "lora_transformer_transformer_blocks_0_attn_add_k_proj",
        "lora_transformer_transformer_blocks_1_ff_context_net_0_proj",
    ]),
    "OneTrainer Flux": ("flux", KOHYA, [
        "lora_transformer_transformer_blocks_0_attn_to_q",
        "lora_transformer_single_transformer_blocks_0_attn_to_v",
        "lora_transformer_single_transformer_blocks_0_proj_mlp",
        "lora_transformer_context_embedder",
        "lora_te1_text_model_encoder_layers_0_self_attn_q_proj",
    ]),
    "OneTrainer Flux LoKr": ("flux", LOKR, [
        "lora_transformer_transformer_blocks_0_attn_to_k",
        "lora_transformer_single_transformer_blocks_1_proj_out",
    ]),
    "SimpleTuner LyCORIS Flux": ("flux", LOKR, [
        "lycoris_transformer_blocks_0_attn_to_q",
        "lycoris_transformer_blocks_0_attn_to_out_0",
        "lycoris_transformer_blocks_0_ff_net_0_proj",
        "lycoris_single_transformer_blocks_0_attn_to_v",
        "lycoris_single_transformer_blocks_1_proj_mlp",
    ]),
    "SimpleTuner LyCORIS SD3": ("sd3", LOKR, [
        "lycoris_transformer_blocks_0_attn_to_k",
        "lycoris_transformer_blocks_1_attn_add_q_proj",
        "lycoris_transformer_blocks_1_ff_net_2",
    ]),
    "SimpleTuner LyCORIS SDXL": ("sdxl", LOKR, [
        "lycoris_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        "lycoris_mid_block_attentions_0_transformer_blocks_9_ff_net_2",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("trainer", TRAINERS)
def test_files_of_other_trainers(comfy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, trainer: str) -> None:
    """With the names that they write: fails if we refuse one, or hand the host another ΔW than it finds by itself."""
    import comfy.lora
    from safetensors.torch import save_file

    architecture, (up, down, alpha), bases = TRAINERS[trainer]
    model, clip = build(architecture), text_encoders(architecture)
    layers = layers_of(model, clip)
    world = SimpleNamespace(model=model, clip=clip, layers=layers)
    keys = comfy.lora.model_lora_keys_clip(clip, comfy.lora.model_lora_keys_unet(model, {}))
    chance, tensors = torch.Generator().manual_seed(1), {}
    for base in bases:
        target = keys[base]  # the host knows all of them
        whole, offset = (target, None) if isinstance(target, str) else (target[0], target[1])
        shape = list(layers[whole.removesuffix(".weight")])
        shape[0] = offset[2] if offset else shape[0]
        if up == "lokr_w1":
            tensors[f"{base}.{up}"] = torch.randn(2, 2, generator=chance)
            tensors[f"{base}.{down}"] = torch.randn(shape[0] // 2, shape[1] // 2, generator=chance)
        else:
            ones = [1, 1] if len(shape) == 4 else []
            tensors[f"{base}.{up}"] = torch.randn(shape[0], 2, *ones, generator=chance)
            tensors[f"{base}.{down}"] = torch.randn(2, *shape[1:], generator=chance)
        if alpha:
            tensors[f"{base}.{alpha}"] = torch.tensor(1.5)
    save_file(tensors, tmp_path / "theirs.safetensors")
    for known in (layers, None):
        ours = load_lora(tmp_path / "theirs.safetensors", known)
        found, expected = host_deltas(world, dict(ours)), host_deltas(world, tensors)
        assert "lora key not loaded" not in caplog.text
        assert set(found) == set(expected)
        for layer, delta in expected.items():
            assert float(delta.abs().max()) > 0
            torch.testing.assert_close(found[layer], delta, atol=1e-4, rtol=1e-4, msg=layer)
