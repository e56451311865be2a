"""FID against SciPy's square root of the product, torchmetrics, and a distance that can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from likeness.metrics.fid import fid, fid_distance, frechet_distance


def features(seed: int, count: int, width: int = 6, shift: float = 0.0) -> Tensor:
    chance = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=chance, dtype=torch.float64)
    return torch.randn(count, width, generator=chance, dtype=torch.float64) @ mixing + shift


def by_sqrtm(generated: Tensor, references: Tensor) -> float:
    """The formula as it is printed, with SciPy's square root of Σ₁Σ₂."""
    a, b = generated.numpy(), references.numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * np.trace(root))


def test_gaussians_whose_distance_is_22_5() -> None:
    """By hand: ‖(3, 3.5)‖² = 21.25, and of the axes' deviations (1 − 2)² + (1 − 1.5)² = 1.25. Fails if a trace, the
    square root or the mean's square is dropped."""
    wide = torch.diag(torch.tensor([4.0, 2.25]))
    found = frechet_distance(torch.zeros(2), torch.eye(2), torch.tensor([3.0, 3.5]), wide)
    assert found == pytest.approx(22.5, rel=1e-12)


@given(st.integers(0, 10**6), st.sampled_from([(40, 30), (40, 9), (5, 30), (4, 3)]))
@settings(max_examples=20, deadline=None)
def test_the_printed_formula(seed: int, sizes: tuple[int, int]) -> None:
    """Wide sets against SciPy's sqrtm to 1e-9; sets smaller than the width, where sqrtm of the singular product loses
    digits, to 1e-5. Fails if the factor of either branch (Cholesky's or the rows themselves) is not that of Σ."""
    generated, references = features(seed, sizes[0]), features(seed + 1, sizes[1], shift=0.5)
    close = 1e-9 if min(sizes) > 6 else 1e-5
    expected = by_sqrtm(generated, references)
    assert fid_distance(generated, references) == pytest.approx(expected, rel=close, abs=close * 100)
    means = [part.mean(0) for part in (generated, references)]
    covariances = [part.T.cov() for part in (generated, references)]
    whole = frechet_distance(means[0], covariances[0], means[1], covariances[1])
    assert whole == pytest.approx(fid_distance(generated, references), rel=1e-6, abs=1e-6)


@given(st.integers(0, 10**6), st.integers(2, 20), st.integers(2, 20))
@settings(max_examples=20, deadline=None)
def test_identity_symmetry_order_and_rotation(seed: int, many: int, others: int) -> None:
    """Fails if the distance of a set to itself is not 0, depends on the order of sets or pictures, or on the axes."""
    a, b = features(seed, many), features(seed + 1, others, shift=1.0)
    distance = fid_distance(a, b)
    assert fid_distance(a, a) == pytest.approx(0, abs=1e-9 * float(a.square().sum()))
    assert fid_distance(b, a) == pytest.approx(distance)
    assert fid_distance(a.flip(0), b.roll(1, 0)) == pytest.approx(distance)
    rotation = torch.linalg.qr(features(seed + 2, 6))[0]
    assert fid_distance(a @ rotation, b @ rotation) == pytest.approx(distance, rel=1e-6)
    assert fid_distance(3 * a, 3 * b) == pytest.approx(9 * distance)


def test_a_feature_that_never_changes_costs_nothing() -> None:
    """Large sets of which one feature is constant: the distance is that of the others. Fails if a covariance without a
    Cholesky factor raises or gives NaN."""
    a, b = features(0, 40), features(1, 30)
    flat = [torch.cat([part, torch.ones(len(part), 1)], dim=1) for part in (a, b)]
    assert fid_distance(flat[0], flat[1]) == pytest.approx(fid_distance(a, b), rel=1e-6)


def test_torchmetrics_agrees() -> None:
    """torchmetrics on the same features. Fails if the covariance has another divisor than n − 1."""
    torchmetrics = pytest.importorskip("torchmetrics.image.fid")

    class Flat(torch.nn.Module):
        num_features = 12

        def forward(self, pictures: Tensor) -> Tensor:
            return pictures.flatten(1)

    generated, references = torch.rand(30, 3, 2, 2), torch.rand(25, 3, 2, 2) ** 2
    theirs = torchmetrics.FrechetInceptionDistance(feature=Flat(), normalize=False, input_img_size=(3, 2, 2))
    theirs.set_dtype(torch.float64)
    theirs.update(references.double(), real=True)
    theirs.update(generated.double(), real=False)
    ours = fid_distance(generated.flatten(1), references.flatten(1))
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-5)


def test_small_sets_are_told_what_their_size_costs() -> None:
    """Two samples of one distribution are far apart when small; the floor says so. Fails if the floor is not of halves
    of the references, or a small set passes without a warning."""
    chance = torch.Generator().manual_seed(0)
    far, near = (fid(*torch.randn(2, count, 64, generator=chance)) for count in (20, 640))
    assert far.floor is not None and far.distance > 5 * near.distance
    assert far.distance < far.floor < 4 * far.distance  # halves are smaller, so farther apart
    assert "20 pictures" in far.warning and "(10 each)" in far.warning
    assert fid(torch.randn(4, 3), torch.randn(3, 3)).floor is None
    many = torch.randn(2048, 3)
    assert fid(many, many).warning == ""


@pytest.mark.parametrize(
    ("generated", "references", "says"),
    [
        (torch.rand(1, 4), torch.rand(3, 4), "there are 1 generated pictures"),
        (torch.rand(3, 4), torch.rand(0, 4), "there are 0 reference pictures"),
        (torch.rand(3, 4), torch.rand(3, 5), "the same network"),
        (torch.rand(3, 4), torch.full((3, 4), torch.nan), "reference features of picture 0 hold NaN"),
        (torch.rand(3), torch.rand(3, 4), "floats"),
        (torch.ones(3, 4, dtype=torch.int64), torch.rand(3, 4), "floats"),
    ],
)
def test_what_is_no_pair_of_sets_is_refused(generated: Tensor, references: Tensor, says: str) -> None:
    """Fails if a number comes out of a set that has no covariance."""
    with pytest.raises(ValueError, match=says):
        fid(generated, references)


def test_what_is_no_covariance_is_refused() -> None:
    """Fails if a negative variance or another width is taken."""
    zero, eye = torch.zeros(2), torch.eye(2)
    with pytest.raises(ValueError, match="eigenvalue -1"):
        frechet_distance(zero, eye, zero, -eye)
    with pytest.raises(ValueError, match="not symmetric"):
        frechet_distance(zero, torch.tensor([[1.0, 1.0], [0.0, 1.0]]), zero, eye)
    with pytest.raises(ValueError, match="expected \\(2,\\)"):
        frechet_distance(zero, eye, torch.zeros(3), torch.eye(3))
