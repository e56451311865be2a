"""SSIM, PSNR and LPIPS against torchmetrics, scikit-image, and LPIPS's formula written out."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from likeness.metrics.lpips import load_lpips
from likeness.metrics.pairs import (
    lpips,
    lpips_per_pair,
    psnr,
    psnr_per_pair,
    ssim,
    ssim_per_pair,
)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def photos(count: int = 2) -> tuple[Tensor, Tensor]:
    """Parts of a photograph of scikit-image, and the same with noise that grows."""
    data = pytest.importorskip("skimage.data", reason="NOT TESTED: scikit-image is not installed")
    whole = torch.from_numpy(data.astronaut()).permute(2, 0, 1).float() / 255
    parts = torch.stack([whole[:, 40 * i : 40 * i + 90, 100:220] for i in range(count)])
    strength = torch.linspace(0.05, 0.2, count).view(-1, 1, 1, 1)
    return parts, (parts + strength * (noise(1, *parts.shape) - 0.5)).clamp(0, 1)


def test_ssim_is_the_variant_of_torchmetrics() -> None:
    """Fails for another window, σ, constants, border, or a mean over pictures where each has its own."""
    from torchmetrics.functional.image import structural_similarity_index_measure as theirs

    pictures, targets = photos()
    want = theirs(pictures.double(), targets.double(), data_range=1.0, reduction="none")
    torch.testing.assert_close(ssim_per_pair(pictures, targets), want, atol=1e-5, rtol=0)
    assert ssim(pictures, targets) == pytest.approx(float(want.mean()), abs=1e-5)


def test_ssim_inside_is_that_of_scikit_image() -> None:
    """scikit-image's map away from the border, with its n − 1 turned off. Fails where the map itself is another one."""
    from kornia.metrics import ssim as ours
    from skimage.metrics import structural_similarity

    pictures, targets = photos(1)
    one, other = (x[0].permute(1, 2, 0).double().numpy() for x in (pictures, targets))
    _, full = structural_similarity(
        one, other, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=False, truncate=3.5, full=True,
    )  # fmt: skip
    mine = ours(pictures.double(), targets.double(), 11)[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(mine[8:-8, 8:-8], full[8:-8, 8:-8], atol=1e-5)
    assert ssim(pictures, targets) == pytest.approx(float(mine.mean()), abs=1e-5)


@given(st.integers(0, 10**6), st.integers(11, 24), st.integers(11, 24))
@settings(max_examples=15, deadline=None)
def test_ssim_of_itself_is_one_and_the_order_does_not_matter(seed: int, high: int, wide: int) -> None:
    """Fails where the two pictures are treated differently, or one pair's score depends on another pair."""
    pictures, targets = noise(seed, 2, 3, high, wide), noise(seed + 1, 2, 3, high, wide)
    assert ssim_per_pair(pictures, pictures).tolist() == pytest.approx([1, 1])
    found = ssim_per_pair(pictures, targets)
    torch.testing.assert_close(found, ssim_per_pair(targets, pictures))
    torch.testing.assert_close(found.flip(0), ssim_per_pair(pictures.flip(0), targets.flip(0)))
    assert (found.abs() <= 1).all()


@given(st.integers(0, 10**6), st.integers(8, 24), st.floats(0.01, 0.3))
@settings(max_examples=15, deadline=None)
def test_psnr_by_hand(seed: int, side: int, shift: float) -> None:
    """A constant error e has PSNR −20 log₁₀ e; scikit-image agrees on noise. Fails for another peak or base."""
    from skimage.metrics import peak_signal_noise_ratio

    pictures, targets = 0.5 * noise(seed, 2, 3, side, side), noise(seed + 1, 2, 3, side, side)
    found = psnr_per_pair(pictures.double(), pictures.double() + shift)
    assert found.tolist() == pytest.approx([-20 * math.log10(shift)] * 2, abs=1e-6)
    want = [peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=1) for a, b in zip(pictures, targets, strict=True)]
    assert psnr_per_pair(pictures, targets).tolist() == pytest.approx(want, rel=1e-5)
    assert psnr(pictures, targets) == pytest.approx(sum(want) / 2, rel=1e-5)


def test_equal_pictures_have_an_infinite_psnr_that_spoils_no_mean() -> None:
    """Fails where one copied picture makes a mean infinite, or a copy counts as a bad score."""
    pictures = noise(0, 2, 3, 16, 16)
    targets = torch.cat([pictures[:1], (pictures[1:] + 0.1).clamp(0, 1)])
    found = psnr_per_pair(pictures, targets)
    assert math.isinf(found[0]) and psnr(pictures, targets) == pytest.approx(float(found[1]))
    assert math.isinf(psnr(pictures, pictures))


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random files as torchvision has them: AlexNet's convolutions pickled, VGG16's as safetensors."""
    pytest.importorskip("lpips", reason="NOT TESTED: lpips is not installed")
    from torchvision import models

    base = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    alex, vgg = models.alexnet().features, models.vgg.make_layers(models.vgg.cfgs["D"])
    torch.save({f"features.{k}": v for k, v in alex.state_dict().items()}, base / "alexnet.pth")
    save_file({f"features.{k}": v for k, v in vgg.state_dict().items()}, base / "vgg16.safetensors")
    return {"alex": base / "alexnet.pth", "vgg": base / "vgg16.safetensors"}


@pytest.mark.parametrize(("net", "layers"), [("alex", (1, 4, 7, 9, 11)), ("vgg", (3, 8, 15, 22, 29))])
def test_lpips_by_its_formula(backbones: dict[str, Path], net: str, layers: tuple[int, ...]) -> None:
    """Equation 1 of the paper over torchvision's own layers, with the package's heads. Fails where a file's layer lands
    in another place, stays random, or pictures are not scaled to [−1, 1]."""
    import lpips as package
    from safetensors.torch import load_file
    from torchvision import models

    features: nn.Sequential = (
        models.alexnet().features if net == "alex" else models.vgg.make_layers(models.vgg.cfgs["D"])
    )
    path = backbones[net]
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    features.load_state_dict({key.removeprefix("features."): value for key, value in state.items()})
    heads = torch.load(Path(package.__file__).parent / "weights" / "v0.1" / f"{net}.pth", "cpu", weights_only=True)
    pictures, targets = noise(1, 2, 3, 64, 64), noise(2, 2, 3, 64, 64)
    mean, std = torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1)
    one, other = ((2 * x - 1 - mean) / std for x in (pictures, targets))
    want = torch.zeros(2)
    with torch.no_grad():
        for number, layer in enumerate(features):
            one, other = layer(one), layer(other)
            if number in layers:
                a, b = (x / x.square().sum(1, keepdim=True).sqrt() for x in (one, other))
                head = heads[f"lin{layers.index(number)}.model.1.weight"]
                want += ((a - b).square() * head.view(1, -1, 1, 1)).sum(1).mean((1, 2))
    network = load_lpips(path)
    assert network.net == net and net in network.description
    torch.testing.assert_close(lpips_per_pair(pictures, targets, network).float(), want, atol=1e-5, rtol=1e-4)
    assert lpips(pictures, pictures, network) == 0


def test_lpips_files_that_will_not_do(backbones: dict[str, Path], tmp_path: Path) -> None:
    """Fails where random layers score without a word, or the message lacks the file and where to get it."""
    state = torch.load(backbones["alex"], weights_only=True)
    for name, broken in (
        ("short.pth", {k: v for k, v in state.items() if k != "features.8.weight"}),
        ("other.pth", {"features.0.weight": torch.zeros(8, 3, 3, 3)}),
        ("odd.pth", state | {"features.3.weight": torch.zeros(2, 2)}),
    ):
        torch.save(broken, tmp_path / name)
        with pytest.raises(ValueError, match=rf"{name}.*alexnet-owt"):
            load_lpips(tmp_path / name)
    (tmp_path / "page.safetensors").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="cannot be read"):
        load_lpips(tmp_path / "page.safetensors")


def test_a_missing_package_says_how_to_install_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where the user sees an ImportError instead of the pip line."""
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ValueError, match="pip install lpips"):
        load_lpips(tmp_path / "alexnet.pth")


@pytest.mark.parametrize("metric", [ssim, psnr])
@pytest.mark.parametrize(
    ("pictures", "targets", "says"),
    [
        (torch.rand(2, 3, 16, 16), torch.rand(1, 3, 16, 16), "2 pictures and 1 targets"),
        (torch.rand(1, 3, 16, 20), torch.rand(1, 3, 20, 16), "20 × 16, targets 16 × 20"),
        (torch.rand(1, 1, 16, 16), torch.rand(1, 1, 16, 16), r"\(B, 3, H, W\)"),
        (torch.rand(1, 4, 16, 16), torch.rand(1, 4, 16, 16), r"\(B, 3, H, W\)"),
        (torch.rand(0, 3, 16, 16), torch.rand(0, 3, 16, 16), "at least one"),
        (torch.rand(1, 3, 16, 16), torch.full((1, 3, 16, 16), torch.nan), "must lie in"),
    ],
)
def test_pictures_that_do_not_pair_are_refused(metric: object, pictures: Tensor, targets: Tensor, says: str) -> None:
    """Fails where one is stretched, repeated or broadcast to fit the other."""
    with pytest.raises(ValueError, match=says):
        metric(pictures, targets)  # type: ignore[operator]


def test_pictures_smaller_than_the_window_are_refused() -> None:
    """Fails where a border larger than the picture is reflected, or the error is the library's."""
    with pytest.raises(ValueError, match="1 × 1 are too small: 11"):
        ssim(torch.rand(1, 3, 1, 1), torch.rand(1, 3, 1, 1))
    with pytest.raises(ValueError, match="16 × 16 are too small: 32"):
        lpips(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16), lambda a, b: torch.zeros(len(a)))
