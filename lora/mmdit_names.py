"""The two names of every layer of the transformers that have two: the checkpoint's own and diffusers'.

Stable Diffusion 3, Flux (Chroma is one), Flux 2 and Z-Image. Their checkpoints fuse query, key and value into one
matrix (Flux's single blocks the feed-forward too), of which diffusers has several: so one layer there is some ROWS of a
layer here. Rows are counted in hidden widths h. Qwen-Image has diffusers' names in its checkpoints.
Checked against the host's own maps in tests/host/test_lora_names.py and tests/host/architectures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Family = Literal["sd3", "flux", "flux2", "z-image", "qwen-image"]


@dataclass(frozen=True)
class Piece:
    """A diffusers layer as rows [start·h, (start + length)·h) of a checkpoint's layer that is total·h rows high.

    layer: the checkpoint's layer, without `diffusion_model.`. total None: it is the whole of it.
    swap: "always" where diffusers has the two halves (shift, scale) the other way round; "if 2h" where that is so
    only of a layer with 2h rows (the last context block of SD3, the others have 6h).
    """

    layer: str
    start: int = 0
    length: int = 1
    total: int | None = None
    swap: Literal["never", "always", "if 2h"] = "never"


_QKV = (0, 1, 2)
_SD3_BLOCK = {
    "norm1.linear": "x_block.adaLN_modulation.1",
    "norm1_context.linear": "context_block.adaLN_modulation.1",
    "attn.to_out.0": "x_block.attn.proj",
    "attn.to_add_out": "context_block.attn.proj",
    "attn.norm_q": "x_block.attn.ln_q",
    "attn.norm_k": "x_block.attn.ln_k",
    "attn.norm_added_q": "context_block.attn.ln_q",
    "attn.norm_added_k": "context_block.attn.ln_k",
    "attn2.to_out.0": "x_block.attn2.proj",
    "attn2.norm_q": "x_block.attn2.ln_q",
    "attn2.norm_k": "x_block.attn2.ln_k",
    "ff.net.0.proj": "x_block.mlp.fc1",
    "ff.net.2": "x_block.mlp.fc2",
    "ff_context.net.0.proj": "context_block.mlp.fc1",
    "ff_context.net.2": "context_block.mlp.fc2",
}
_SD3_FUSED = {
    "attn.to_{}": "x_block.attn.qkv",
    "attn.add_{}_proj": "context_block.attn.qkv",
    "attn2.to_{}": "x_block.attn2.qkv",
}
_SD3_BASIC = {
    "context_embedder": "context_embedder",
    "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
    "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
    "pos_embed.proj": "x_embedder.proj",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_FLUX_BLOCK = {
    "norm1.linear": "img_mod.lin",
    "norm1_context.linear": "txt_mod.lin",
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.net.0.proj": "img_mlp.0",
    "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0",
    "ff_context.net.2": "txt_mlp.2",
}
_FLUX_FUSED = {"attn.to_{}": "img_attn.qkv", "attn.add_{}_proj": "txt_attn.qkv"}
_FLUX_SINGLE = {"norm.linear": "modulation.lin", "proj_out": "linear2"}
_FLUX_BASIC = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_FLUX2_BLOCK = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
_FLUX2_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out.0": "linear2"}
_FLUX2_BASIC = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_guidance_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "double_stream_modulation_img.linear": "double_stream_modulation_img.lin",
    "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
    "single_stream_modulation.linear": "single_stream_modulation.lin",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}
_ZIMAGE_BLOCK = {
    "attention.to_out.0": "attention.out",
    "attention.norm_q": "attention.q_norm",
    "attention.norm_k": "attention.k_norm",
    "feed_forward.w1": "feed_forward.w1",
    "feed_forward.w2": "feed_forward.w2",
    "feed_forward.w3": "feed_forward.w3",
    "adaLN_modulation.0": "adaLN_modulation.0",
}
_ZIMAGE_FUSED = {"attention.to_{}": "attention.qkv"}
_ZIMAGE_BASIC = {
    "all_x_embedder.2-1": "x_embedder",
    "cap_embedder.1": "cap_embedder.1",
    "t_embedder.mlp.0": "t_embedder.mlp.0",
    "t_embedder.mlp.2": "t_embedder.mlp.2",
    "all_final_layer.2-1.linear": "final_layer.linear",
    "all_final_layer.2-1.adaLN_modulation.1": "final_layer.adaLN_modulation.1",
}
_QWEN = re.compile(
    r"^transformer_blocks\.\d+\.(attn\.(to|add|norm)_|img_m|txt_m)|^(img_in|txt_in|txt_norm|proj_out|norm_out\.linear)$"
    r"|^time_text_embed\."
)


def _block(whole: dict[str, str], fused: dict[str, str]) -> dict[str, Piece]:
    """diffusers' inner name -> the piece, of one transformer block."""
    pieces = {name: Piece(layer) for name, layer in whole.items()}
    for pattern, layer in fused.items():
        for index, letter in zip(_QKV, "qkv", strict=True):
            pieces[pattern.format(letter)] = Piece(layer, index, 1, 3)
    return pieces


_LINEAR1 = {f"attn.to_{letter}": Piece("linear1", i, 1, 7) for i, letter in zip(_QKV, "qkv", strict=True)} | {
    "proj_mlp": Piece("linear1", 3, 4, 7)
}
Z_IMAGE_ROOTS = ("layers", "noise_refiner", "context_refiner")
_SD3 = _block(_SD3_BLOCK, _SD3_FUSED)
_SD3["norm1_context.linear"] = Piece("context_block.adaLN_modulation.1", swap="if 2h")
_TABLES: dict[Family, dict[tuple[str, str], dict[str, Piece]]] = {
    "sd3": {("transformer_blocks", "joint_blocks"): _SD3},
    "flux": {
        ("transformer_blocks", "double_blocks"): _block(_FLUX_BLOCK, _FLUX_FUSED),
        ("single_transformer_blocks", "single_blocks"): _block(_FLUX_SINGLE, {}) | _LINEAR1,
    },
    "flux2": {
        ("transformer_blocks", "double_blocks"): _block(_FLUX2_BLOCK, _FLUX_FUSED),
        ("single_transformer_blocks", "single_blocks"): _block(_FLUX2_SINGLE, {}),
    },
    "z-image": {(root, root): _block(_ZIMAGE_BLOCK, _ZIMAGE_FUSED) for root in Z_IMAGE_ROOTS},
    "qwen-image": {},
}
_BASIC: dict[Family, dict[str, str]] = {
    "sd3": _SD3_BASIC,
    "flux": _FLUX_BASIC,
    "flux2": _FLUX2_BASIC,
    "z-image": _ZIMAGE_BASIC,
    "qwen-image": {},
}
_NUMBERED = re.compile(r"^([a-z_]+)\.(\d+)\.(.+)$")
ROOTS = ("joint_blocks.", "double_blocks.", "single_blocks.")


_Z_IMAGE = re.compile(rf"^(?:{'|'.join(Z_IMAGE_ROOTS)})\.\d+\.(?:attention|feed_forward|adaLN_modulation)\.")


def family_of(name: str) -> Family | None:
    """Which family a checkpoint's own layer name belongs to, as far as the name says: Flux 2's say Flux."""
    if name.startswith("joint_blocks."):
        return "sd3"
    if name.startswith(ROOTS[1:]):
        return "flux"
    if _QWEN.match(name) and name.startswith("transformer_blocks."):
        return "qwen-image"
    return "z-image" if _Z_IMAGE.match(name) else None


def family_of_all(names: Iterable[str]) -> Family | None:
    """Which family a model is, all of whose layers are known."""
    found = None
    for name in names:
        if name.startswith("double_stream_modulation_"):
            return "flux2"
        found = found or family_of(name)
    return found


def _whole(name: str, layer: str) -> Piece:
    return Piece(layer, swap="always" if name == "norm_out.linear" else "never")


def to_checkpoint(name: str, family: Family) -> Piece | None:
    """The piece of a checkpoint's layer that a diffusers layer is, both without prefix; None where there is none."""
    if name in _BASIC[family]:
        return _whole(name, _BASIC[family][name])
    if family == "qwen-image":
        return Piece(name) if _QWEN.match(name) else None
    found = _NUMBERED.match(name)
    for (theirs, ours), pieces in _TABLES[family].items():
        if found and found[1] == theirs and found[3] in pieces:
            piece = pieces[found[3]]
            return Piece(f"{ours}.{found[2]}.{piece.layer}", piece.start, piece.length, piece.total, piece.swap)
    return None


def to_diffusers(name: str, family: Family) -> list[tuple[str, Piece]]:
    """The diffusers layers that a checkpoint's layer is made of, with the piece that each is; [] where unknown."""
    if family == "qwen-image":
        return [(name, Piece(name))] if _QWEN.match(name) else []
    for theirs, ours in _BASIC[family].items():
        if ours == name:
            return [(theirs, _whole(theirs, name))]
    found = _NUMBERED.match(name)
    out: list[tuple[str, Piece]] = []
    for (theirs, ours), pieces in _TABLES[family].items():
        if found and found[1] == ours:
            for inner, piece in pieces.items():
                if piece.layer == found[3]:
                    out.append(
                        (
                            f"{theirs}.{found[2]}.{inner}",
                            Piece(name, piece.start, piece.length, piece.total, piece.swap),
                        )
                    )
    return out
