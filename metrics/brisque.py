"""BRISQUE: how bad people would find a picture's quality, 0 (best) to 100, by its statistics; lower is better.

Mittal, Moorthy and Bovik 2012, IEEE TIP 21, 12: 18 features at two scales, scaled to [−1, 1], into a support vector
machine that was trained on the opinions of the LIVE database. Values leave 0 to 100 a little.

The machine is not in the pack. It is read from what a user has: ``allmodel`` of the authors' release (a libsvm text),
``brisque_svm_weights.pt`` of piq (Apache-2.0; weights_only), or a safetensors file with ``sv`` (n, 36) and ``sv_coef``
(n,). Others were trained on other features (OpenCV's, rho −155.8): refused where they say so.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .natural import SHIFTS, fit_asymmetric, fit_gaussian, gamma_ratio, grey_levels, half_size, mscn

FILES = ("brisque.safetensors", "allmodel", "brisque_svm_weights.pt")
GAMMA, RHO = 0.05, -153.591
# fmt: off
_LOW = (
    0.338, 0.017204, 0.236, -0.123884, 0.000155, 0.001122, 0.244, -0.123586, 0.000152, 0.000975, 0.249, -0.135687,
    0.000174, 0.000913, 0.258, -0.143408, 0.000179, 0.000888, 0.471, 0.012809, 0.218, -0.094876, 1.5e-05, 0.001272,
    0.222, -0.115772, 1.6e-05, 0.001374, 0.227, -0.117188, 3e-05, 0.001122, 0.228, -0.12243, 2.8e-05, 0.001118,
)
_HIGH = (
    10, 0.806612, 1.642, 0.20293, 0.712298, 0.470257, 1.641, 0.179083, 0.710456, 0.470984, 1.555, 0.100858,
    0.684173, 0.534174, 1.561, 0.100486, 0.685696, 0.536508, 3.264, 0.703171, 1.046, 0.187459, 0.442057, 0.40803,
    1.042, 0.162604, 0.444362, 0.40243, 0.996, 0.098323, 0.531903, 0.369589, 0.99, 0.098658, 0.530092, 0.370399,
)
# fmt: on


@dataclass(frozen=True)
class Machine:
    """A support vector regression with an RBF kernel: `vectors` (n, 36), `weights` (n,), float64."""

    vectors: Tensor
    weights: Tensor
    gamma: float = GAMMA
    rho: float = RHO

    def __call__(self, features: Tensor) -> Tensor:
        """Scaled features (N, 36) -> (N,)."""
        kernel = (-self.gamma * torch.cdist(features, self.vectors).square()).exp()
        found: Tensor = kernel @ self.weights - self.rho
        return found


@torch.no_grad()
def brisque(pictures: Tensor, machine: Machine) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N,) float64 on the CPU; NaN for a picture without texture.

    Raises:
        ValueError: another shape, dtype or range, or below 16 × 16.
    """
    features = brisque_features(pictures)
    low, high = (torch.tensor(bound, dtype=torch.float64) for bound in (_LOW, _HIGH))
    return machine(2 * (features - low) / (high - low) - 1)


def mean_brisque(pictures: Tensor, machine: Machine) -> float:
    """Mean BRISQUE of (N, 3, H, W), over the pictures that have one; NaN where none has."""
    return float(brisque(pictures, machine).nanmean())


@torch.no_grad()
def brisque_features(pictures: Tensor) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, 36), 18 of each scale, before scaling."""
    levels = grey_levels(pictures).cpu()
    if min(levels.shape[2:]) < 16:
        raise ValueError(f"BRISQUE needs 16 pixels a side or more, got {levels.shape[3]} × {levels.shape[2]}")
    scales = []
    for _ in range(2):
        seen = mscn(levels, replicate=False)[:, 0]
        shape, variance = fit_gaussian(seen.flatten(1))
        found = [shape, variance]
        for shift in SHIFTS:
            shape, left, right = fit_asymmetric((seen * seen.roll(shift, (1, 2))).flatten(1))
            mean = (right - left) * gamma_ratio(2 / shape, 1 / shape, 3 / shape)
            found += [shape, mean, left.square(), right.square()]
        scales.append(torch.stack(found, dim=1))
        levels = half_size(levels)
    return torch.cat(scales, dim=1)


def load_machine(path: Path) -> Machine:
    """The support vectors of one of :data:`FILES`.

    Raises:
        ValueError: it cannot be read, or is another machine.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
            weights, vectors = state["sv_coef"], state["sv"]
        elif path.suffix in (".pt", ".pth"):
            weights, vectors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            return _from_libsvm(path)
    except (SafetensorError, KeyError, pickle.UnpicklingError, RuntimeError, TypeError, UnicodeDecodeError) as why:
        raise ValueError(
            f"{path} has no support vectors ({str(why)[:80]}); expected one of {', '.join(FILES)}"
        ) from why
    weights, vectors = weights.flatten().to(torch.float64), vectors.to(torch.float64)
    if vectors.shape != (len(weights), 36):
        raise ValueError(f"{path} has vectors {tuple(vectors.shape)} for {len(weights)} weights; expected (n, 36)")
    return Machine(vectors, weights)


def _from_libsvm(path: Path) -> Machine:
    head, body = {}, []
    lines = iter(path.read_text("ascii").splitlines())
    for line in lines:
        if line.strip() == "SV":
            body = [part.split() for part in lines if part.strip()]
            break
        name, _, value = line.partition(" ")
        head[name] = value
    gamma, rho = (float(head.get(name, "nan")) for name in ("gamma", "rho"))
    if head.get("kernel_type") != "rbf" or abs(rho - RHO) > 0.01 or abs(gamma - GAMMA) > 1e-6 or not body:
        raise ValueError(
            f"{path} is not the machine of BRISQUE's authors: kernel {head.get('kernel_type')}, gamma {gamma}, rho "
            f"{rho}; expected rbf, {GAMMA}, {RHO}"
        )
    vectors = torch.zeros(len(body), 36, dtype=torch.float64)
    for row, (_, *pairs) in enumerate(body):  # what is zero is left out of the file
        for number, value in (pair.split(":") for pair in pairs):
            vectors[row, int(number) - 1] = float(value)
    return Machine(vectors, torch.tensor([float(part[0]) for part in body], dtype=torch.float64))
