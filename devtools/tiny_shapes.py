"""Names and shapes of a published file's tensors, and numbers for them by a formula: parts of tiny stand-ins."""

from __future__ import annotations

import zlib

import numpy as np
import torch
from torch import Tensor


class Shapes(dict[str, tuple[int, ...]]):
    """Name -> shape, written down a layer at a time."""

    def linear(self, name: str, inner: int, outer: int, *kernel: int) -> None:
        """With a bias; with a kernel, a convolution."""
        self[f"{name}.weight"], self[f"{name}.bias"] = (outer, inner, *kernel), (outer,)

    def norm(self, name: str, width: int) -> None:
        """Its weight and bias."""
        self[f"{name}.weight"] = self[f"{name}.bias"] = (width,)

    def vit(self, name: str, width: int, patch: int, places: int, blocks: int) -> None:
        """A vision transformer as timm names it, but for its last norm and its head; `places` with the class token."""
        self[f"{name}.cls_token"], self[f"{name}.pos_embed"] = (1, 1, width), (1, places, width)
        self.linear(f"{name}.patch_embed.proj", 3, width, patch, patch)
        for number in range(blocks):
            block = f"{name}.blocks.{number}"
            self.norm(f"{block}.norm1", width)
            self.norm(f"{block}.norm2", width)
            self.linear(f"{block}.attn.qkv", width, 3 * width)
            self.linear(f"{block}.attn.proj", width, width)
            self.linear(f"{block}.mlp.fc1", width, 4 * width)
            self.linear(f"{block}.mlp.fc2", 4 * width, width)


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Chance from the name, of a size that lets attention choose and rewards differ; NumPy's frozen generator."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name.lower() and name.endswith("weight"):
        values = 1 + 0.2 * values
    elif name.endswith("bias") or "pos_embed" in name or "position" in name:
        values = 0.2 * values
    elif len(shape) > 1 and "embeddings" not in name and "cls_token" not in name:
        values = values * 1.5 / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))
