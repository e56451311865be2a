from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from likeness.trainers.buckets import bucket, fit


def by_brute_force(height: int, width: int, resolution: int, step: int) -> set[tuple[int, int]]:
    """Every size allowed; of each height the widest; the nearest shapes, in whole numbers; of those the largest."""
    allowed = [
        (h, w)
        for h in range(step, height + 1, step)
        for w in range(step, width + 1, step)
        if h * w <= resolution * resolution
    ]
    widest = dict(sorted(allowed))  # of equal heights the last, which is the widest
    off = {hw: max(r := Fraction(hw[0] * width, hw[1] * height), 1 / r) for hw in widest.items()}
    nearest = [hw for hw in off if off[hw] == min(off.values())]
    return {hw for hw in nearest if hw[0] * hw[1] == max(h * w for h, w in nearest)}


@settings(max_examples=150, deadline=None)
@given(st.integers(8, 200), st.integers(8, 200), st.integers(8, 100), st.sampled_from([1, 4, 8]))
def test_bucket_is_the_best_of_all(height: int, width: int, resolution: int, step: int) -> None:
    """Fails if another allowed size has a shape nearer to the picture's, or the same shape and more pixels."""
    assert bucket(height, width, resolution, step) in by_brute_force(height, width, resolution, step)


@settings(max_examples=150, deadline=None)
@given(st.integers(8, 5000), st.integers(8, 5000), st.integers(64, 1024), st.sampled_from([8, 64]))
def test_fit_keeps_the_middle_and_never_scales_up(height: int, width: int, resolution: int, step: int) -> None:
    """Fails if the box leaves the picture, is off centre, distorts, or a pixel is scaled up."""
    assume(min(height, width) >= step and resolution >= step)
    place = fit(height, width, resolution, step)
    (tall, wide), (left, top, right, bottom) = place.size, place.box
    assert tall % step == 0 and wide % step == 0 and tall * wide <= resolution**2
    assert left >= 0 and top >= 0 and right <= width + 1e-6 and bottom <= height + 1e-6
    scale = tall / (bottom - top)
    assert scale <= 1 + 1e-9
    assert wide / (right - left) == pytest.approx(scale, rel=1e-9)
    assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
    assert abs(left) < 1e-6 or abs(top) < 1e-6  # it is cropped on one pair of sides at most
    assert place.crop == (round(top * scale), round(left * scale))


@pytest.mark.parametrize(
    ("picture", "resolution", "step", "expected"),
    [
        ((64, 64), 64, 8, (64, 64)),
        ((2000, 3000), 512, 8, (416, 624)),
        ((100, 100), 512, 8, (96, 96)),
        ((4000, 4000), 1024, 64, (1024, 1024)),
        ((2160, 3840), 1024, 64, (768, 1344)),
        ((8, 900), 512, 8, (8, 896)),
    ],
)
def test_known_buckets(picture: tuple[int, int], resolution: int, step: int, expected: tuple[int, int]) -> None:
    """Fails if the usual pictures land in other than the usual buckets (SDXL's 1344×768 for 16:9)."""
    assert bucket(*picture, resolution, step) == expected


def test_too_small_is_an_error() -> None:
    """Fails if a picture that cannot be cut to a bucket is scaled up or crashes."""
    with pytest.raises(ValueError, match=r"300×5 pixels.*at least 8"):
        bucket(5, 300, 512, 8)
    with pytest.raises(ValueError, match="resolution is 32"):
        bucket(500, 300, 32, 64)
