"""LPIPS's networks (Zhang et al. 2018, arXiv 1801.03924): AlexNet or VGG16, and the heads of the package lpips 0.1.

The package brings the heads. The backbone is a file of the user's: torchvision's own (``alexnet-owt-7be5be79.pth``,
``vgg16-397923af.pth``), or a safetensors file with the same names, or one of the whole network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .tensors import read_tensors

PIP = "pip install lpips"
FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth"}
_FIRST: dict[tuple[int, ...], str] = {(64, 3, 11, 11): "alex", (64, 3, 3, 3): "vgg"}


class Lpips(nn.Module):
    """Two (B, 3, H, W) in [0, 1] -> (B,) distances; 0: equal. `net`: ``alex`` or ``vgg``."""

    def __init__(self, network: Any, net: str) -> None:
        super().__init__()
        self.network, self.net = network, net

    @property
    def description(self) -> str:
        """For tables: distances of the two networks are not to be pooled."""
        return f"LPIPS 0.1, {self.net}"

    def forward(self, pictures: Tensor, targets: Tensor) -> Tensor:
        weight = next(self.network.parameters())
        seen = (2 * one.to(weight.device, weight.dtype) - 1 for one in (pictures, targets))
        found: Tensor = self.network(*seen).flatten(1).squeeze(1)
        return found


def load_lpips(path: Path) -> Lpips:
    """The network of a file; its shapes say which.

    Raises:
        ValueError: the package is missing, or the file is of another network.
    """
    try:
        import lpips
    except ImportError as why:
        raise ValueError(f"LPIPS needs the package lpips: {PIP}") from why
    wanted = f"expected torchvision's {FILES['alex']} or {FILES['vgg']} (download.pytorch.org/models)"
    state = read_tensors(path, wanted)
    first = next((value for name, value in state.items() if name.endswith(".0.weight") and value.ndim == 4), None)
    net = None if first is None else _FIRST.get(tuple(first.shape))
    if net is None:
        raise ValueError(f"{path} is neither AlexNet nor VGG16; {wanted}")
    network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    named = {}
    for name in network.net.state_dict():  # slice1.0.weight is torchvision's features.0.weight
        known = (f"net.{name}", f"features.{name.split('.', 1)[1]}")
        found = next((state[key] for key in known if key in state), None)
        if found is None:
            raise ValueError(f"{path} lacks {known[1]}: the download is incomplete; {wanted}")
        named[name] = found
    heads = {name: value for name, value in state.items() if name.startswith("lin")}
    try:
        network.net.load_state_dict(named)
        network.load_state_dict(heads, strict=False)
    except RuntimeError as why:
        raise ValueError(f"{path} is not LPIPS's {net} ({' '.join(str(why).split())[:200]}); {wanted}") from why
    return Lpips(network.eval().requires_grad_(False), net)
