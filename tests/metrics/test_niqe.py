"""NIQE against the formula written out with NumPy and SciPy, block by block, and against its authors' own figures."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve
from scipy.special import gamma
from torch import Tensor

from likeness.metrics.natural import fit_gaussian, half_size, mscn
from likeness.metrics.niqe import mean_niqe, niqe, pristine

OFFICIAL = {"I03": 15.7536, "I04": 3.6549, "I06": 3.2355, "I08": 3.1840, "I19": 8.6352}
"""What the authors' MATLAB release gives for five distorted pictures of TID2013."""


def photograph(name: str = "astronaut", crop: int = 256) -> Tensor:
    data = pytest.importorskip("skimage.data")
    picture = getattr(data, name)()[:crop, :crop]
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255


def matlab_half(image: np.ndarray) -> np.ndarray:
    """Pillow's bicubic with antialiasing is MATLAB's inside; the mirror at the borders is made by hand."""
    wide = np.pad(image, 8, mode="symmetric")
    small = Image.fromarray(wide.astype(np.float32), mode="F").resize(
        (wide.shape[1] // 2, wide.shape[0] // 2), Image.Resampling.BICUBIC
    )
    return np.asarray(small, dtype=np.float64)[4:-4, 4:-4]


def one_side(block: np.ndarray) -> tuple[float, float, float]:
    grid = np.arange(0.2, 10.001, 0.001)
    ratios = gamma(2 / grid) ** 2 / (gamma(1 / grid) * gamma(3 / grid))
    left, right = math.sqrt((block[block < 0] ** 2).mean()), math.sqrt((block[block > 0] ** 2).mean())
    g = left / right
    ratio = np.abs(block).mean() ** 2 / (block**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
    shape = grid[np.argmin((ratios - ratio) ** 2)]
    scale = math.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def by_numpy(picture: Tensor) -> float:
    """Sections II.A to II.D of the paper."""
    levels = (picture[0].permute(1, 2, 0).double().numpy() * 255).round() @ [0.298936, 0.587043, 0.114021]
    image = levels.round()
    high, wide = image.shape[0] // 96, image.shape[1] // 96
    image = image[: high * 96, : wide * 96]
    axis = np.arange(-3, 4)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    columns = []
    for side in (96, 48):
        mean = convolve(image, window, mode="nearest")
        deviation = np.sqrt(np.abs(convolve(image**2, window, mode="nearest") - mean**2))
        normed = (image - mean) / (deviation + 1)
        rows = []
        for y in range(high):
            for x in range(wide):
                block = normed[y * side : (y + 1) * side, x * side : (x + 1) * side]
                shape, left, right = one_side(block)
                row = [shape, (left + right) / 2]
                for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                    shape, left, right = one_side(block * np.roll(block, shift, (0, 1)))
                    row += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
                rows.append(row)
        columns.append(np.array(rows))
        image = matlab_half(image)
    features = np.concatenate(columns, axis=1)
    apart = pristine().mean.numpy() - features.mean(0)
    pooled = (pristine().covariance.numpy() + np.cov(features, rowvar=False)) / 2
    return math.sqrt(apart @ np.linalg.pinv(pooled) @ apart)


def test_the_formula_block_by_block() -> None:
    """Fails if a feature, its order, a shift, a border, the halving or the block size differs. 1e-3: Pillow halves in
    float32."""
    picture = photograph()
    assert float(niqe(picture)) == pytest.approx(by_numpy(picture), rel=1e-3)


def test_a_photograph_is_better_than_its_spoilt_copies() -> None:
    """Fails if more noise or blur does not raise the score; or a picture's score depends on its neighbours in the
    batch."""
    picture = photograph(crop=384)
    noise = torch.randn(picture.shape, generator=torch.Generator().manual_seed(0))
    noisy = (picture + 0.15 * noise).clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(picture, 7, 1, 3)
    good, bad, soft = niqe(torch.cat([picture, noisy, blurred])).tolist()
    assert 2 < good < 7 and bad > good + 2 and soft > good + 2
    assert float(niqe(picture)) == pytest.approx(good)
    assert mean_niqe(torch.cat([picture, noisy])) == pytest.approx((good + bad) / 2)


def test_what_has_no_texture_has_no_score() -> None:
    """Fails if a flat picture raises, is good, or spoils the mean of others; or a small one is stretched."""
    flat = torch.full((1, 3, 200, 200), 0.5)
    assert niqe(flat).isnan().all() and math.isnan(mean_niqe(flat))
    both = torch.cat([flat, photograph(crop=200)])
    assert mean_niqe(both) == pytest.approx(float(niqe(both)[1]))
    for shape, says in (
        ((1, 3, 180, 180), "two blocks of 96"),
        ((1, 1, 200, 200), "must be"),
        ((0, 3, 9, 9), "must be"),
    ):
        with pytest.raises(ValueError, match=says):
            niqe(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
        niqe(torch.full((1, 3, 200, 200), torch.nan))


def test_half_size_is_matlabs() -> None:
    """Against Pillow's kernel on a mirrored picture; and a constant stays constant. Fails if a tap or the mirror is
    wrong."""
    levels = 255 * torch.rand(2, 1, 20, 32, dtype=torch.float64)
    expected = np.stack([matlab_half(one.numpy()) for one in levels[:, 0]])
    assert np.allclose(half_size(levels)[:, 0].numpy(), expected, atol=1e-3)
    assert torch.allclose(half_size(torch.full((1, 1, 7, 3), 9.0)), torch.full((1, 1, 4, 2), 9.0))


@pytest.mark.parametrize(("shape", "exponent"), [(2.0, "normal"), (1.0, "laplace")])
def test_shapes_of_known_distributions(shape: float, exponent: str) -> None:
    """A Gaussian has shape 2, a Laplacian 1. Fails if the ratio of moments is inverted."""
    chance = np.random.default_rng(0)
    values = torch.from_numpy(getattr(chance, exponent)(size=(2, 200_000)))
    found, variance = fit_gaussian(values)
    assert found.tolist() == pytest.approx([shape] * 2, rel=0.03)
    assert variance.tolist() == pytest.approx([1.0 if shape == 2 else 2.0] * 2, rel=0.03)


def test_flat_areas_are_zero_and_not_rounding() -> None:
    """Fails if the sign of a rounding error in a flat area counts as texture."""
    levels = torch.full((1, 1, 30, 30), 77.0, dtype=torch.float64)
    assert not mscn(levels, replicate=True).any()


def test_the_official_figures() -> None:
    """Within 1% of the authors' release (issue: 5%). Fails if another variant is computed (MATLAB's own: 7.2 for the
    first). The pictures are TID2013's, and not ours to ship."""
    folder = os.environ.get("LIKENESS_TID_PICTURES")
    if not folder:
        pytest.skip(f"NOT TESTED: put {', '.join(OFFICIAL)}.bmp into a folder and name it in LIKENESS_TID_PICTURES")
    for name, official in OFFICIAL.items():
        pixels = np.array(Image.open(Path(folder) / f"{name}.bmp").convert("RGB"))
        score = float(niqe(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255))
        assert score == pytest.approx(official, rel=0.01), name
