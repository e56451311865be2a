"""A file of MANIQA's with a narrow ViT and 8 × 8 places; a formula gives the weights, as in tiny_image_reward."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .tiny_image_reward import formula

WIDTH, HIDDEN, PATCH, CELLS = 128, 96, 28, 8


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The names of the published file, and their shapes here."""
    found: dict[str, tuple[int, ...]] = {
        "vit.cls_token": (1, 1, WIDTH),
        "vit.pos_embed": (1, CELLS**2 + 1, WIDTH),
        "vit.patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "vit.patch_embed.proj.bias": (WIDTH,),
    }

    def linear(name: str, inner: int, outer: int, *kernel: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outer, inner, *kernel), (outer,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    for number in range(12):
        block = f"vit.blocks.{number}"
        norm(f"{block}.norm1", WIDTH)
        norm(f"{block}.norm2", WIDTH)
        linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", WIDTH, 4 * WIDTH)
        linear(f"{block}.mlp.fc2", 4 * WIDTH, WIDTH)
    norm("vit.norm", WIDTH)
    linear("vit.head", WIDTH, 10)
    for stage, width in ((1, WIDTH), (2, WIDTH // 2)):
        for number in range(2):
            for part in ("c_q", "c_k", "c_v"):
                linear(f"tablock{stage}.{number}.{part}", CELLS**2, CELLS**2)
        linear(f"conv{stage}", 4 * WIDTH if stage == 1 else WIDTH, width, 1, 1)
        linear(f"swintransformer{stage}.downsample", width, width, 3, 3)
        for number in range(2):
            layer = f"swintransformer{stage}.layers.{number}"
            linear(f"{layer}.conv", width, width, 3, 3)
            for block in range(2):
                inner = f"{layer}.blocks.{block}"
                norm(f"{inner}.norm1", width)
                norm(f"{inner}.norm2", width)
                found[f"{inner}.attn.relative_position_bias_table"] = (49, 4)
                linear(f"{inner}.attn.qkv", width, 3 * width)
                linear(f"{inner}.attn.proj", width, width)
                linear(f"{inner}.mlp.fc1", width, HIDDEN)
                linear(f"{inner}.mlp.fc2", HIDDEN, width)
    for head in ("fc_score", "fc_weight"):
        linear(f"{head}.0", WIDTH // 2, WIDTH // 2)
        linear(f"{head}.3", WIDTH // 2, 1)
    return found


def published() -> dict[str, Tensor]:
    """The file's tensors, with the tables that it also holds and nobody needs."""
    state = {name: formula(name, shape) for name, shape in published_shapes().items()}
    for name, tensor in state.items():
        if tensor.ndim > 1 and name.endswith("weight"):
            tensor *= 0.5  # nothing normalises between the stages: attention would choose one place and no other
    for stage in (1, 2):
        for layer in (0, 1):
            block = f"swintransformer{stage}.layers.{layer}.blocks"
            for number in (0, 1):
                state[f"{block}.{number}.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.long)
            state[f"{block}.1.attn_mask"] = torch.zeros(4, 16, 16)
    return state


def maniqa(path: Path) -> Path:
    """The file, as a user has it."""
    torch.save(published(), path)
    return path
