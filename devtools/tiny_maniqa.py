"""A file of MANIQA's with a narrow ViT and 8 × 8 places; a formula gives the weights, as in tiny_image_reward."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .tiny_shapes import Shapes, formula

WIDTH, HIDDEN, PATCH, CELLS = 128, 96, 28, 8


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The names of the published file, and their shapes here."""
    found = Shapes()
    found.vit("vit", WIDTH, PATCH, CELLS**2 + 1, 12)
    found.norm("vit.norm", WIDTH)
    found.linear("vit.head", WIDTH, 10)
    for stage, width in ((1, WIDTH), (2, WIDTH // 2)):
        for number in range(2):
            for part in ("c_q", "c_k", "c_v"):
                found.linear(f"tablock{stage}.{number}.{part}", CELLS**2, CELLS**2)
        found.linear(f"conv{stage}", 4 * WIDTH if stage == 1 else WIDTH, width, 1, 1)
        found.linear(f"swintransformer{stage}.downsample", width, width, 3, 3)
        for number in range(2):
            layer = f"swintransformer{stage}.layers.{number}"
            found.linear(f"{layer}.conv", width, width, 3, 3)
            for block in range(2):
                inner = f"{layer}.blocks.{block}"
                found.norm(f"{inner}.norm1", width)
                found.norm(f"{inner}.norm2", width)
                found[f"{inner}.attn.relative_position_bias_table"] = (49, 4)
                found.linear(f"{inner}.attn.qkv", width, 3 * width)
                found.linear(f"{inner}.attn.proj", width, width)
                found.linear(f"{inner}.mlp.fc1", width, HIDDEN)
                found.linear(f"{inner}.mlp.fc2", HIDDEN, width)
    for head in ("fc_score", "fc_weight"):
        found.linear(f"{head}.0", WIDTH // 2, WIDTH // 2)
        found.linear(f"{head}.3", WIDTH // 2, 1)
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
