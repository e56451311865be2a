"""A vision transformer under timm's names into transformers' BlipVisionModel, which is built alike.

BLIP and MANIQA were made with timm's. ``transformers`` is what the host brings; timm is not needed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_HEAD_WIDTH = 64  # of tiny, small, base and large
_NAMES = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


def renamed(name: str) -> str:
    """timm's name -> transformers'; unknown ones stay as they are."""
    for old, new in _NAMES:
        name = name.replace(old, new)
    return re.sub(r"^norm\.", "post_layernorm.", name)


def empty_vit(state: Mapping[str, Tensor], side: int, blocks: int | None = None) -> Any:
    """The network, of which ``state`` (transformers' names) gives the sizes.

    Args:
        side: pixels that it must see.
        blocks: how many of them are wanted; None: all.

    Raises:
        ValueError: no such network, or one of another kind; says which sizes it has.
    """
    from transformers import BlipVisionConfig, BlipVisionModel

    patches, places = state.get("embeddings.patch_embedding.weight"), state.get("embeddings.position_embedding")
    if patches is None or places is None or patches.ndim != 4 or places.ndim != 3:
        raise ValueError("it has no vision transformer")
    width, patch = patches.shape[0], patches.shape[2]
    seen = patch * math.isqrt(max(0, places.shape[1] - 1))
    if width % _HEAD_WIDTH or seen != side:
        raise ValueError(f"its vision transformer sees {seen} pixels in {width} numbers, expected {side} pixels")
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layers.")}
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=len(layers) if blocks is None else blocks,
        num_attention_heads=width // _HEAD_WIDTH,
        image_size=side,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    return BlipVisionModel(config)
