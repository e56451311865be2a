"""BRISQUE against the formula written out with NumPy and SciPy, a machine by hand, and its authors' own figures."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.ndimage import convolve
from scipy.special import gamma
from torch import Tensor

from likeness.metrics.brisque import Machine, brisque, brisque_features, load_machine

OFFICIAL = {"I03": 94.6421, "I04": -0.1076, "I06": 0.9929, "I08": 5.3583, "I19": 72.2617}
"""What the authors' MATLAB release gives for five distorted pictures of TID2013."""


def photograph(size: int = 96) -> Tensor:
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.astronaut()[:size, 100 : 100 + size].copy()).permute(2, 0, 1)[None].float() / 255


def by_numpy(image: np.ndarray) -> list[float]:
    """The 18 features of one scale, from grey levels (sections III.A and III.B)."""
    grid = np.arange(0.2, 10.001, 0.001)
    axis = np.arange(-3, 4)
    window = np.exp(-(axis[:, None] ** 2 + axis**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    mean = convolve(image, window, mode="constant")
    normed = (image - mean) / (np.sqrt(np.abs(convolve(image**2, window, mode="constant") - mean**2)) + 1)
    ratios = gamma(1 / grid) * gamma(3 / grid) / gamma(2 / grid) ** 2
    variance = (normed**2).mean()
    found = [grid[np.argmin(np.abs(variance / np.abs(normed).mean() ** 2 - ratios))], variance]
    for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        pairs = normed * np.roll(normed, shift, (0, 1))
        left, right = math.sqrt((pairs[pairs < 0] ** 2).mean()), math.sqrt((pairs[pairs > 0] ** 2).mean())
        g = left / right
        ratio = np.abs(pairs).mean() ** 2 / (pairs**2).mean() * (g**3 + 1) * (g + 1) / (g**2 + 1) ** 2
        shape = grid[np.argmin((1 / ratios - ratio) ** 2)]
        skew = (right - left) * gamma(2 / shape) / gamma(1 / shape) * math.sqrt(gamma(1 / shape) / gamma(3 / shape))
        found += [shape, skew, left**2, right**2]
    return found


def machine(seed: int = 0, count: int = 5) -> Machine:
    chance = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 36, generator=chance, dtype=torch.float64)
    return Machine(vectors, torch.randn(count, generator=chance, dtype=torch.float64))


def test_the_features_by_hand() -> None:
    """Fails if the order, a border, a shift or an exponent differs. The shape of a near-Gaussian is looked up on a grid
    of .001, where two roundings of one ratio may fall apart by one step."""
    picture = photograph()
    grey = ((picture[0].permute(1, 2, 0).double().numpy() * 255).round() @ [0.298936, 0.587043, 0.114021]).round()
    assert brisque_features(picture)[0, :18].tolist() == pytest.approx(by_numpy(grey), rel=2e-3, abs=1e-6)
    assert brisque_features(picture).shape == (1, 36)


def test_the_machine_by_hand() -> None:
    """Σ wᵢ exp(−γ‖x − vᵢ‖²) − ρ in plain Python. Fails if γ, the sign of ρ or the distance's square is wrong."""
    svm, features = machine(), torch.rand(2, 36, dtype=torch.float64)
    for row, found in zip(features.tolist(), svm(features).tolist(), strict=True):
        total = 153.591
        for vector, weight in zip(svm.vectors.tolist(), svm.weights.tolist(), strict=True):
            apart = sum((a - b) ** 2 for a, b in zip(row, vector, strict=True))
            total += weight * math.exp(-0.05 * apart)
        assert found == pytest.approx(total)


def test_a_batch_is_its_pictures_and_a_flat_one_has_no_score() -> None:
    """Fails if a picture's score depends on its neighbours, or a flat picture raises or is scored."""
    picture, svm = photograph(), machine()
    both = torch.cat([picture, picture.flip(3), torch.zeros_like(picture)])
    alone = [float(brisque(one[None], svm)) for one in both[:2]]
    assert brisque(both, svm)[:2].tolist() == pytest.approx(alone)
    assert brisque(both, svm)[2].isnan()
    with pytest.raises(ValueError, match="16 pixels a side"):
        brisque(torch.rand(1, 3, 8, 40), svm)


def test_three_files_are_one_machine(tmp_path: Path) -> None:
    """Fails if a layout is read with another order, or a zero left out of the text shifts what follows."""
    svm = machine()
    svm.vectors[1, 3] = 0.0
    save_file({"sv": svm.vectors, "sv_coef": svm.weights}, tmp_path / "brisque.safetensors")
    torch.save((svm.weights, svm.vectors), tmp_path / "brisque_svm_weights.pt")
    lines = ["svm_type epsilon_svr", "kernel_type rbf", "gamma 0.05", "total_sv 5", "rho -153.591", "SV"]
    for vector, weight in zip(svm.vectors.tolist(), svm.weights.tolist(), strict=True):
        lines.append(" ".join([repr(weight), *(f"{n}:{value!r}" for n, value in enumerate(vector, 1) if value)]))
    (tmp_path / "allmodel").write_text("\n".join(lines) + "\n")
    for name in ("brisque.safetensors", "brisque_svm_weights.pt", "allmodel"):
        read = load_machine(tmp_path / name)
        assert torch.equal(read.vectors, svm.vectors) and torch.equal(read.weights, svm.weights), name


def test_another_machine_is_refused(tmp_path: Path) -> None:
    """Fails if a machine trained on other features, a pickle with code, or rubbish is taken."""
    (tmp_path / "allmodel").write_text("kernel_type rbf\ngamma 0.05\nrho -155.8\nSV\n1 1:2\n")
    save_file({"sv": torch.zeros(3, 35), "sv_coef": torch.zeros(3)}, tmp_path / "brisque.safetensors")
    torch.save(Path("x"), tmp_path / "brisque_svm_weights.pt")
    for name, says in (
        ("allmodel", r"rho -155.8; expected rbf"),
        ("brisque.safetensors", r"\(3, 35\) for 3 weights"),
        ("brisque_svm_weights.pt", "has no support vectors"),
    ):
        with pytest.raises(ValueError, match=says):
            load_machine(tmp_path / name)


def test_the_official_figures() -> None:
    """Within 2.5 of 100 points of the authors' release: three within .01; two whose flat areas MATLAB fills with
    rounding noise (see natural.mscn) within .6 and 2.2. The pictures are TID2013's, the machine the authors'."""
    pictures, file = os.environ.get("LIKENESS_TID_PICTURES"), os.environ.get("LIKENESS_BRISQUE_MODEL")
    if not pictures or not file:
        pytest.skip(
            "NOT TESTED: name five pictures' folder in LIKENESS_TID_PICTURES, allmodel in LIKENESS_BRISQUE_MODEL"
        )
    svm = load_machine(Path(file))
    for name, official in OFFICIAL.items():
        pixels = np.array(Image.open(Path(pictures) / f"{name}.bmp").convert("RGB"))
        score = float(brisque(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, svm))
        assert score == pytest.approx(official, abs=2.5 if name in ("I08", "I19") else 0.01), name
