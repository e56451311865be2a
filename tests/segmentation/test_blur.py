"""The blur: against an explicit kernel and brute-force weights, and what must not change."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from likeness.segmentation import blur as module
from likeness.segmentation.blur import (
    DECAY,
    DIAGONAL,
    GAUSSIAN,
    LEAST,
    LITERAL,
    MODES,
    PIXELS,
    RADIUS,
    SCALES,
    Blur,
    blur_subject,
    gaussian,
    weight_map,
)
from likeness.segmentation.masks import distance, feather, grow


def picture_of(height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(channels, height, width, generator=torch.Generator().manual_seed(seed))


def square(height: int, width: int) -> Tensor:
    mask = torch.zeros(height, width)
    mask[height // 3 : height // 2 + 1, width // 3 : width // 2 + 1] = 1
    return mask


@pytest.mark.parametrize(("kernel", "sigma"), [(9, 3.0), (21, 100.0), (1, 5.0)])
def test_separable_is_the_dense_convolution(kernel: int, sigma: float) -> None:
    """Oracle: the paper's kernel, normalised, in two dimensions at once. Fails on another border or σ."""
    offset = torch.arange(kernel) - kernel // 2
    dense = torch.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * sigma**2))
    dense /= dense.sum()
    picture = picture_of(31, 17)
    padded = functional.pad(picture[:, None], [kernel // 2] * 4, mode="replicate")
    assert torch.allclose(
        gaussian(picture, kernel, sigma), functional.conv2d(padded, dense[None, None])[:, 0], atol=1e-5
    )


def test_the_papers_kernel_is_nearly_a_box() -> None:
    """k = 151, σ = 100: its edge is .755 of its centre. Fails if σ is halved, squared or cut at three σ."""
    spike = torch.zeros(1, 301, 301)
    spike[0, 150, 150] = 1
    row = gaussian(spike, 151, 100.0)[0, 150]
    assert float(row[150 - 75] / row[150]) == pytest.approx(math.exp(-(75**2) / (2 * 100**2)), abs=1e-4)
    assert float(row[150 - 75] / row[150]) == pytest.approx(0.755, abs=1e-3)
    assert float(row[150 - 76]) == 0


@pytest.mark.parametrize("scale", SCALES)
def test_weights_are_those_of_the_formula(scale: str) -> None:
    """Oracle: e^{−λ·d/s} by brute force. Fails on another distance or scale, or if weights inside are not 1."""
    mask = square(24, 30)
    blur = Blur(DECAY, kernel=11, sigma=4.0, decay=5.0, scale=scale)
    weights = weight_map(mask, blur)
    s = {RADIUS: 5.0, DIAGONAL: math.hypot(24, 30), PIXELS: 1.0}[scale]
    inside = mask.nonzero().tolist()
    for y in range(0, 24, 5):
        for x in range(0, 30, 7):
            expected = math.exp(-5.0 * min(math.dist((y, x), place) for place in inside) / s)
            assert float(weights[y, x]) == pytest.approx(expected if expected >= LEAST else 0, abs=1e-5)
    assert (weights[mask > 0] == 1).all()


@given(st.sampled_from(MODES[:2]), st.sampled_from(SCALES), st.integers(1, 33), st.integers(1, 33), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_a_constant_picture_stays_constant(mode: str, scale: str, height: int, width: int, value: float) -> None:
    """Of any size from one pixel on, mask full, empty or between. Fails if weights do not add up, as the paper's."""
    picture = torch.full((3, height, width), value)
    for mask in (torch.zeros(height, width), torch.ones(height, width), square(height, width)):
        out, _ = blur_subject(picture, mask, Blur(mode, 15, 6.0, 5.0, scale, grow=1, feather=2))
        assert torch.allclose(out, picture, atol=1e-6)


def test_the_literal_formula_darkens() -> None:
    """As documented: what e^{−λd} takes away is not given back. Fails if the mode is the corrected one."""
    picture = torch.ones(3, 40, 40)
    out, weights = blur_subject(picture, square(40, 40), Blur(LITERAL, 15, 6.0, 5.0, RADIUS))
    near = (weights > 0) & (weights < 1)
    assert torch.allclose(out[:, near], weights[near].expand(3, -1), atol=1e-5)
    assert (out[:, weights == 0] == 1).all() and torch.allclose(out[:, weights == 1], torch.tensor(1.0), atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_beyond_the_reach_nothing_changes(mode: str, dtype: torch.dtype) -> None:
    """Bit for bit, in any dtype, alpha included; inside it does change. Fails if the whole picture is computed anew."""
    picture = picture_of(60, 50, 4).to(dtype)
    out, weights = blur_subject(picture, square(60, 50), Blur(mode, 9, 3.0, 5.0, RADIUS))
    assert out.dtype == dtype and torch.equal(out[3], picture[3])
    outside = weights == 0
    assert outside.any() and torch.equal(out[:, outside], picture[:, outside])
    assert (out[:3, weights == 1] != picture[:3, weights == 1]).any()


@pytest.mark.parametrize("mode", [GAUSSIAN, DECAY])
def test_a_piece_is_computed_as_the_whole_would_be(mode: str) -> None:
    """Only the mask's surroundings are convolved. Oracle: w·blur + (1 − w)·picture of the whole. Fails if the border of
    the piece comes in."""
    picture, mask, blur = picture_of(70, 64), torch.zeros(70, 64), Blur(mode, 21, 8.0, 5.0, RADIUS)
    mask[40:50, 2:9] = 1
    out, weights = blur_subject(picture, mask, blur)
    whole = weights * gaussian(picture, 21, 8.0) + (1 - weights) * picture
    assert torch.allclose(out, whole, atol=1e-6)


@given(
    st.sampled_from(MODES),
    st.sampled_from(SCALES),
    st.sampled_from([0.0, 0.5, 5.0, 40.0]),
    st.sampled_from([-2.0, 0.0, 3.0]),
    st.sampled_from([0.0, 4.0]),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_weights_of_the_surroundings_are_those_of_the_whole(
    mode: str, scale: str, decay: float, by: float, soft: float, seed: int
) -> None:
    """Oracle: grow, feather and e^{−λ·d/s} over the whole mask. Fails if the piece that is computed is too small for
    what grows, fades or decays, or if λ = 0 is not a weight of 1 everywhere."""
    chance = torch.Generator().manual_seed(seed)
    top, left, high, wide = (int(torch.randint(0, most, (), generator=chance)) for most in (50, 70, 12, 12))
    mask = torch.zeros(57, 83)
    mask[top : top + high, left : left + wide] = (
        torch.rand(mask[top : top + high, left : left + wide].shape, generator=chance) ** 0.2
    )
    blur = Blur(mode, 7, 3.0, decay, scale, by, soft)
    expected = feather(grow(mask, by), soft)
    if mode != GAUSSIAN and (expected > 0.5).any():
        s = {RADIUS: 3.0, DIAGONAL: math.hypot(57, 83), PIXELS: 1.0}[scale]
        expected = torch.maximum(expected, torch.exp(-decay * distance(expected) / s))
    expected[expected < LEAST] = 0
    assert torch.equal(weight_map(mask, blur), expected)


def test_a_small_mask_in_a_large_picture_costs_what_it_covers() -> None:
    """4096²: seconds and hundreds of megabytes if the whole were computed. Fails if the piece that is convolved, or
    whose distances are asked, is larger than the reach."""
    picture, mask = picture_of(1, 1, 1).expand(1, 4096, 4096), torch.zeros(4096, 4096)
    mask[2000:2040, 3000:3100] = 1
    sizes = []
    with pytest.MonkeyPatch.context() as patch:
        for name, work in (("distance", distance), ("gaussian", gaussian)):
            patch.setattr(
                module, name, lambda first, *rest, work=work: sizes.append(first.shape[-2:]) or work(first, *rest)
            )
        out, weights = blur_subject(picture, mask, Blur())
    assert [max(size) < 500 for size in sizes] == [True, True]
    assert torch.allclose(out, picture, atol=1e-6) and weights.sum() > mask.sum()


def test_kernel_and_sigma_grow_with_the_picture() -> None:
    """At 1024 pixels they are the paper's; at 64 a sixteenth, odd. Fails if the shorter side decides."""
    assert Blur().for_size(700, 1024) == Blur()
    small = Blur().for_size(64, 32)
    assert small.kernel == 9 and small.sigma == pytest.approx(6.25)


def test_bad_settings_and_sizes_are_told() -> None:
    """Fails if an even kernel is rounded in silence, or a mask of another size is stretched by broadcasting."""
    for given_ in ({"kernel": 8}, {"sigma": 0.0}, {"mode": "box"}, {"decay": -1.0}, {"feather": -1.0}):
        with pytest.raises(ValueError):
            Blur(**given_)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a mask"):
        blur_subject(picture_of(8, 8), torch.ones(1, 8), Blur())
