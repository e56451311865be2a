"""The built-in subject finder: a small U-Net (Ronneberger et al. 2015, arXiv 1505.04597), subject against ground.

It knows no words: whatever stands out against its background is the subject. It was taught on drawn composites with
true masks (tinyworld/train_segmenter.py), so it is at home among drawings and clear pictures; for photographs take
Grounding DINO and SAM.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).with_name("weights") / "subject.safetensors"
SIZE = 64
"""Pixels of the longer side inside: the network looks at shapes, not at detail."""
WIDTHS = (16, 32, 64, 96)
_LEAST = 8  # the network halves three times


class _Block(nn.Sequential):
    """Two 3×3 convolutions; normalised by groups, so that a picture's mask does not depend on its neighbours."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, 3, padding=1, bias=False),
            nn.GroupNorm(8, outside),
            nn.SiLU(),
            nn.Conv2d(outside, outside, 3, padding=1, bias=False),
            nn.GroupNorm(8, outside),
            nn.SiLU(),
        )


class SubjectSegmenter(nn.Module):
    """(B, 3, H, W) in [0, 1], H and W multiples of 8 -> logits (B, H, W). 0.4M parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _Block(3, WIDTHS[0])
        self.down = nn.ModuleList(_Block(a, b) for a, b in pairwise(WIDTHS))
        # what the whole picture is made of, for every place: mean and maximum of the deepest features
        self.whole = nn.Linear(2 * WIDTHS[-1], WIDTHS[-1])
        self.up = nn.ModuleList(_Block(b + a, a) for a, b in pairwise(WIDTHS))
        self.head = nn.Conv2d(WIDTHS[0], 1, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        x = self.stem(pictures * 2 - 1)
        passed = [x]
        for block in self.down:
            x = block(functional.max_pool2d(x, 2))
            passed.append(x)
        about = torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)
        x = x + self.whole(about)[:, :, None, None]
        for block, aside in zip(reversed(self.up), reversed(passed[:-1]), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest")
            x = block(torch.cat([x, aside], 1))
        logits: Tensor = self.head(x)[:, 0]
        return logits

    def probability(self, pictures: Tensor) -> Tensor:
        """Where the subject is, at the pictures' own size.

        Args:
            pictures: (B, 3, H, W) in [0, 1], of any size; seen with a longer side of `SIZE` pixels, the shorter one
                continued by its edge.

        Returns:
            (B, H, W) in [0, 1]; above ½ is subject.

        Raises:
            ValueError: they are no such pictures.
        """
        if pictures.ndim != 4 or pictures.shape[1] != 3 or 0 in pictures.shape:
            raise ValueError(f"pictures must be (B, 3, H, W), at least one pixel each; got {tuple(pictures.shape)}")
        height, width = pictures.shape[2:]
        scale = SIZE / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        small = pictures
        if size != (height, width):
            small = functional.interpolate(pictures, size=size, mode="bilinear", antialias=True)
        below, right = -size[0] % _LEAST, -size[1] % _LEAST
        logits = self(functional.pad(small, (0, right, 0, below), mode="replicate"))[:, None, : size[0], : size[1]]
        if size != (height, width):
            logits = functional.interpolate(logits, size=(height, width), mode="bilinear")
        found: Tensor = logits[:, 0].sigmoid()
        return found


def load_subject_segmenter(path: Path | None = None) -> SubjectSegmenter:
    """The shipped network (or the one in `path`, a safetensors file of ours), fp32, ready to be asked.

    Raises:
        ValueError: the file is not there, or holds another network.
    """
    file = path or WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"the subject finder's weights {file} cannot be read ({error}); reinstall the pack") from error
    network = SubjectSegmenter()
    try:
        network.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except RuntimeError as error:
        raise ValueError(f"{file} is not the subject finder's: {error}") from error
    return network.eval().requires_grad_(False)
