"""EfficientNet-Lite0 (Tan & Le 2019, arXiv 1905.11946; Lite: Google 2020): a small feature network for pictures.

Module names are those of the published PyTorch port of Google's weights, so that its file loads as it is.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

# repeats, kernel, stride of the first, expansion, channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM = 32


class SameConv(nn.Conv2d):
    """TensorFlow's "same" padding: ⌈inputs / stride⌉ outputs; the odd pixel of padding goes right and below."""

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        wide, high = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in (input.shape[3], input.shape[2]))
        left, above = wide // 2, high // 2
        return super().forward(functional.pad(input, (left, wide - left, above, high - above)))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    """Inverted residual: widen, convolve each channel, narrow; added to the input where the shapes agree."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.expands, self.adds = expansion != 1, stride == 1 and inside == outside
        if self.expands:
            self._expand_conv = SameConv(inside, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv(wide, outside, 1, bias=False)
        self._bn2 = _norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        h = functional.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        y: Tensor = x + h if self.adds else h
        return y


class EfficientNetLite0(nn.Module):
    """(B, 3, H, W), colours scaled to (255·v − 127)/128 -> the last block's output (B, 320, ⌈H/32⌉, ⌈W/32⌉), signed.

    The classifier's 1280 channels are left out: for subjects, the last block tells more (metrics/README.md).
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, _STEM, 3, 2, bias=False)
        self._bn0 = _norm(_STEM)
        blocks: list[nn.Module] = []
        inside = _STEM
        for repeats, kernel, stride, expansion, outside in _STAGES:
            for i in range(repeats):
                blocks.append(_Block(inside, outside, kernel, stride if i == 0 else 1, expansion))
                inside = outside
        self._blocks = nn.Sequential(*blocks)

    def forward(self, pictures: Tensor) -> Tensor:
        features: Tensor = self._blocks(functional.relu6(self._bn0(self._conv_stem(pictures))))
        return features
