"""The models that are trained: widths as in the real ones, few blocks, random weights.

Each is made by diffusers, seeded, and written under the host's names by the host's own tables
(``comfy.utils.unet_to_diffusers``, ``mmdit_to_diffusers``), so that all contenders train the same tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """Where a tensor of diffusers' model lies in the host's: name, (first row, rows) of it, and how to turn it there.

    ``turn`` is its own inverse (it swaps halves).
    """

    name: str
    rows: tuple[int, int] | None = None
    turn: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Model:
    """A model and what goes in.

    kind: class of comfy.supported_models. peer: class of diffusers and its configuration. host: what the host's own
    table of names asks for. unet: what the host's detection takes for granted. latent: (C, H, W). text: (tokens,
    width). pooled: width, 0 = none. flow: predicts the velocity, else ε. res_blocks: a level, where the run ends in a
    file of kohya's names; else it has the host's.
    """

    kind: str
    peer: str
    config: dict[str, Any]
    host: dict[str, Any]
    text: tuple[int, int]
    latent: tuple[int, int, int] = (4, 16, 16)
    pooled: int = 0
    flow: bool = False
    batch: int = 1
    checkpointing: tuple[bool, ...] = (False,)
    res_blocks: list[int] = field(default_factory=list)
    unet: dict[str, Any] = field(default_factory=dict)

    @property
    def pictures(self) -> int:
        """In the data set. The host's node 0.3.75 dies on a single latent (an unbound `multi_res`)."""
        return max(2, self.batch)


_SD15: dict[str, Any] = {
    "kind": "SD15",
    "peer": "UNet2DConditionModel",
    "config": {
        "sample_size": 16,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 640),
        "layers_per_block": 1,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
    },
    "host": {
        "num_res_blocks": [1, 1, 1],
        "channel_mult": [1, 2, 2],
        "transformer_depth": [1, 1, 1],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1],
        "transformer_depth_middle": 1,
    },
    "text": (77, 768),
    "res_blocks": [1, 1, 1],
}

MODELS: dict[str, Model] = {
    "sd15": Model(**_SD15, checkpointing=(False, True)),
    "sd15-batch4": Model(**_SD15, batch=4),
    "sdxl": Model(
        kind="SDXL",
        peer="UNet2DConditionModel",
        config={
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (320, 640, 1280),
            "layers_per_block": 1,
            "cross_attention_dim": 2048,
            "attention_head_dim": (5, 10, 20),
            "use_linear_projection": True,
            "transformer_layers_per_block": 1,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        },
        host={
            "num_res_blocks": [1, 1, 1],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 1, 1],
            "transformer_depth_output": [0, 0, 1, 1, 1, 1],
            "transformer_depth_middle": 1,
        },
        text=(77, 2048),
        pooled=1280,
    ),
    "sd3": Model(
        kind="SD3",
        peer="SD3Transformer2DModel",
        config={
            "sample_size": 16,
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 64,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "caption_projection_dim": 1536,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 32,
        },
        # The width is 64 times the depth, whatever the number of blocks.
        host={"depth": 24, "num_blocks": 2},
        text=(77, 4096),
        latent=(16, 16, 16),
        pooled=2048,
        flow=True,
    ),
}


def _flux(heads: int, double: int, single: int, text: int, pooled: int, side: int) -> Model:
    """A Flux of 128 channels a head, guidance embedded."""
    return Model(
        kind="Flux",
        peer="FluxTransformer2DModel",
        config={
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": double,
            "num_single_layers": single,
            "attention_head_dim": 128,
            "num_attention_heads": heads,
            "joint_attention_dim": text,
            "pooled_projection_dim": pooled,
            "guidance_embeds": True,
        },
        host={"depth": double, "depth_single_blocks": single, "hidden_size": 128 * heads},
        unet={"num_heads": heads},
        text=(512 if heads > 2 else 8, text),
        latent=(16, side, side),
        pooled=pooled,
        flow=True,
    )


_SDXL = MODELS["sdxl"]

WHOLE: dict[str, Model] = {
    "sdxl-1024": replace(
        _SDXL,
        config={
            **_SDXL.config,
            "sample_size": 128,
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 2, 10),
        },
        host={
            "num_res_blocks": [2, 2, 2],
            "channel_mult": [1, 2, 4],
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
        },
        latent=(4, 128, 128),
    ),
    "flux": _flux(heads=24, double=19, single=38, text=4096, pooled=768, side=128),
}
"""The real models, all blocks, latents of 1024² pixels: for a GPU (gpu_step.py)."""

TINY: dict[str, Model] = {
    "sdxl-1024": replace(
        _SDXL,
        config={
            **_SDXL.config,
            "block_out_channels": (64, 128, 256),
            "cross_attention_dim": 64,
            "attention_head_dim": (1, 2, 4),
        },
        text=(8, 64),
    ),
    "flux": _flux(heads=2, double=1, single=2, text=64, pooled=32, side=16),
}
"""The same in small, to try gpu_step.py out on a CPU."""


def model_of(name: str, tiny: bool = False) -> Model:
    """By its name in :data:`MODELS` or, whole or tiny, in :data:`WHOLE`."""
    return MODELS[name] if name in MODELS else (TINY if tiny else WHOLE)[name]


def names(model: Model) -> dict[str, Entry]:
    """diffusers tensor name -> its place in the host's model, by the host's own table; some are in neither model."""
    import comfy.utils

    if model.peer == "UNet2DConditionModel":
        config = {key: list(value) if isinstance(value, list) else value for key, value in model.host.items()}
        return {key: Entry(name) for key, name in comfy.utils.unet_to_diffusers(config).items()}
    flux = model.peer == "FluxTransformer2DModel"
    make = comfy.utils.flux_to_diffusers if flux else comfy.utils.mmdit_to_diffusers
    table: dict[str, Any] = make(model.host)
    found = {}
    for key, place in table.items():
        name, where, turn, *_ = (*place, None, None) if isinstance(place, tuple) else (place, None, None)
        found[key] = Entry(name, where[1:] if where else None, turn)
    if flux:
        return found
    # The table knows the last block, whose norm is of another kind, only where all blocks are there.
    last = model.host["num_blocks"] - 1
    for end in ("weight", "bias"):
        key = f"transformer_blocks.{last}.norm1_context.linear.{end}"
        found[key] = Entry(found[key].name, None, comfy.utils.swap_scale_shift)
    return found


def turns(model: Model) -> dict[str, Callable[[Tensor], Tensor]]:
    """diffusers layer name -> how the rows of its weight, and of a LoRA's up, are turned there: few layers."""
    return {
        fused(key.removesuffix(".weight")): entry.turn
        for key, entry in names(model).items()
        if key.endswith(".weight") and entry.turn is not None
    }


def layers(model: Model) -> dict[str, str]:
    """diffusers layer name, q, k and v taken together -> host layer name (without `diffusion_model.`)."""
    found = {}
    for key, entry in names(model).items():
        if key.endswith(".weight"):
            found[fused(key.removesuffix(".weight"))] = entry.name.removesuffix(".weight")
    return found


_FUSED = {
    ".attn.to_q": ".attn.to_qkv",
    ".attn.to_k": ".attn.to_qkv",
    ".attn.to_v": ".attn.to_qkv",
    ".attn.add_q_proj": ".attn.to_added_qkv",
    ".attn.add_k_proj": ".attn.to_added_qkv",
    ".attn.add_v_proj": ".attn.to_added_qkv",
}


def fused(layer: str) -> str:
    """A layer's name after diffusers' `fuse_qkv_projections`, which an MMDiT's blocks need (their `attn`)."""
    for before, after in _FUSED.items():
        if layer.endswith(before):
            return layer.removesuffix(before) + after
    return layer
