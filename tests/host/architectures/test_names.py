"""LoRA names of the families that came after Flux, as the trainers of each write them, against the host's own map."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from likeness.lora.keys import canonicalise, to_deltas

BLOCK = "diffusion_model.transformer_blocks.1"
NAMES: dict[str, dict[str, tuple[str, tuple[int, int] | None]]] = {
    "z-image": {  # ai-toolkit and diffusers' own exchange format, SimpleTuner's LyCORIS, kohya's
        "diffusion_model.layers.1.attention.to_q": ("diffusion_model.layers.1.attention.qkv", (0, 3)),
        "diffusion_model.layers.1.attention.to_v": ("diffusion_model.layers.1.attention.qkv", (2, 3)),
        "diffusion_model.noise_refiner.0.attention.to_out.0": ("diffusion_model.noise_refiner.0.attention.out", None),
        "diffusion_model.layers.0.feed_forward.w1": ("diffusion_model.layers.0.feed_forward.w1", None),
        "diffusion_model.layers.0.adaLN_modulation.0": ("diffusion_model.layers.0.adaLN_modulation.0", None),
        "lycoris_context_refiner_0_attention_to_k": ("diffusion_model.context_refiner.0.attention.qkv", (1, 3)),
        "lycoris_layers_0_feed_forward_w2": ("diffusion_model.layers.0.feed_forward.w2", None),
        "lora_unet_layers_0_attention_qkv": ("diffusion_model.layers.0.attention.qkv", None),
        "diffusion_model.all_final_layer.2-1.linear": ("diffusion_model.final_layer.linear", None),
    },
    "qwen-image": {
        "transformer.transformer_blocks.1.attn.to_q": (f"{BLOCK}.attn.to_q", None),
        "transformer_blocks.1.attn.add_k_proj": (f"{BLOCK}.attn.add_k_proj", None),
        "diffusion_model.transformer_blocks.1.img_mlp.net.2": (f"{BLOCK}.img_mlp.net.2", None),
        "transformer.transformer_blocks.1.txt_mod.1": (f"{BLOCK}.txt_mod.1", None),
        "lycoris_transformer_blocks_1_attn_to_out_0": (f"{BLOCK}.attn.to_out.0", None),
        "lora_unet_transformer_blocks_1_img_mod_1": (f"{BLOCK}.img_mod.1", None),
    },
    "chroma": {
        "diffusion_model.double_blocks.0.img_attn.qkv": ("diffusion_model.double_blocks.0.img_attn.qkv", None),
        "lora_unet_single_blocks_1_linear1": ("diffusion_model.single_blocks.1.linear1", None),
        "transformer.transformer_blocks.0.attn.add_q_proj": ("diffusion_model.double_blocks.0.txt_attn.qkv", (0, 3)),
        "transformer.single_transformer_blocks.1.attn.to_k": ("diffusion_model.single_blocks.1.linear1", (1, 7)),
    },
    "flux2": {
        "diffusion_model.single_blocks.1.linear1": ("diffusion_model.single_blocks.1.linear1", None),
        "lora_unet_double_blocks_0_txt_mlp_2": ("diffusion_model.double_blocks.0.txt_mlp.2", None),
        "transformer.transformer_blocks.0.attn.to_v": ("diffusion_model.double_blocks.0.img_attn.qkv", (2, 3)),
    },
}
NEWER = {
    "transformer.transformer_blocks.0.ff.linear_in": "diffusion_model.double_blocks.0.img_mlp.0",
    "transformer.single_transformer_blocks.1.attn.to_qkv_mlp_proj": "diffusion_model.single_blocks.1.linear1",
    "transformer.single_transformer_blocks.1.attn.to_out": "diffusion_model.single_blocks.1.linear2",
    "transformer.double_stream_modulation_img.linear": "diffusion_model.double_stream_modulation_img.lin",
}
"""Flux 2 as diffusers writes it. The host of the floor does not know these names, so its map cannot be asked."""


@pytest.mark.parametrize("family", list(NAMES))
def test_names_mean_what_the_host_says(kit: SimpleNamespace, family: str) -> None:
    """Fails if we refuse a name that the host knows, or take it for another layer or for other rows."""
    import comfy.lora

    patcher = kit.build(family)
    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    shapes = {n.removesuffix(".weight"): tuple(t.shape) for n, t in patcher.model.state_dict().items() if t.ndim == 2}
    whole_file: dict[str, torch.Tensor] = {}
    for name, (layer, piece) in NAMES[family].items():
        target = keys.get(name)
        whole, offset = (target, None) if isinstance(target, str) or target is None else (target[0], target[1])
        assert whole is None or whole == f"{layer}.weight", name
        height, columns = shapes[layer]
        if piece is None:
            begin, rows = 0, height
        else:
            rows = height // piece[1]
            begin = piece[0] * rows
        assert whole is None or offset is None or tuple(offset) == (0, begin, rows), name
        pair = {f"{name}.lora_B.weight": torch.ones(rows, 1), f"{name}.lora_A.weight": torch.ones(1, columns)}
        whole_file |= pair
        found = canonicalise(pair, shapes)
        assert found.unmatched == (), name
        ((ours, delta),) = to_deltas(found.tensors).items()
        dense = delta.dense()
        assert ours == layer and tuple(dense.shape) == (height, columns), name
        assert bool(dense[begin : begin + rows].all()) and float(dense.sum()) == rows * columns, name
    if family == "z-image":  # the others' names alone do not tell them from Flux's and SD3's
        unaided = to_deltas(canonicalise(whole_file).tensors)
        assert set(unaided) == {layer for layer, _ in NAMES[family].values()}
    known_to_host = [name for name in NAMES[family] if name in keys]
    assert len(known_to_host) >= len(NAMES[family]) - 1


def test_flux2_of_diffusers(kit: SimpleNamespace) -> None:
    """Fails if Flux 2's fused linear1, whose name diffusers changed since Flux 1, were not found."""
    state = kit.build("flux2").model.state_dict()
    shapes = {n.removesuffix(".weight"): tuple(t.shape) for n, t in state.items() if t.ndim == 2}
    tensors = {}
    for name, layer in NEWER.items():
        rows, columns = shapes[layer]
        tensors |= {f"{name}.lora_B.weight": torch.ones(rows, 1), f"{name}.lora_A.weight": torch.ones(1, columns)}
    for known in (shapes, None):
        found = canonicalise(tensors, known)
        assert found.unmatched == () and set(to_deltas(found.tensors)) == set(NEWER.values())
