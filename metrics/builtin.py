"""The feature network that needs no folder: EfficientNet-Lite0 of an installed package, as a backbone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from .backbones import Backbone, Tower
from .features import LITE0_PACKAGE, PooledFeatures, efficientnet_lite0, lite0_file
from .preprocess import check_size

FOR_TINY = 40
"""`detail` for 64-pixel pictures: metrics/README.md."""


@dataclass(frozen=True)
class _Lite0Preprocess:
    detail: int | None
    pooled: PooledFeatures

    @property
    def description(self) -> str:
        first = "" if self.detail is None else f"averaged to {self.detail}, then "
        return f"{first}squashed to {self.pooled.size} bicubic"

    def __call__(self, pictures: Tensor) -> Tensor:
        check_size(pictures)
        return (self.pooled.resize(pictures) - self.pooled.mean) / self.pooled.std


class _Lite0(Tower):
    def __init__(self, network: nn.Module, pool: int) -> None:
        super().__init__()
        self.network, self.pool = network, pool

    def pictures(self, seen: Tensor) -> Tensor:
        return functional.adaptive_avg_pool2d(self.network(seen), self.pool).flatten(1)


def lite0_backbone(detail: int | None = None) -> Backbone:
    """EfficientNet-Lite0, as ``features.efficientnet_lite0`` has it.

    Args:
        detail: None for photos, :data:`FOR_TINY` for pictures of 64 pixels.

    Raises:
        ValueError: the weights' package is not installed.
    """
    file = lite0_file()
    about = PooledFeatures(nn.Identity(), size=192, mean=127 / 255, std=128 / 255, pool=2, detail=detail)

    def load() -> Tower:
        return _Lite0(efficientnet_lite0(detail).network, about.pool)

    return Backbone("", "EfficientNet-Lite0", _Lite0Preprocess(detail, about), (file,), load)


__all__ = ["FOR_TINY", "LITE0_PACKAGE", "lite0_backbone"]
