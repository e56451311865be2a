"""MANIQA: quality of a picture without a reference, about 0 to 1; higher is better.

Yang et al. 2022 (arXiv 2204.08958; code and weights Apache-2.0). Four inner layers of a ViT-B/8 are mixed by attention
across channels (TAB) and across places (Swin blocks), twice; each patch gets a score and a weight. Its scale is that of
the opinions it was trained with: KonIQ-10k's (photographs from the web), KADID-10k's (made distortions). Figures of
different files must not be compared. The file is the user's.

The authors average 20 crops of 224 pixels at places of chance. Here they are the same for all pictures of one size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .features import check_pictures

SIDE, CROPS = 224, 20
BLOCKS = (6, 7, 8, 9)
"""Of the ViT's twelve, counted from 0; the two behind them are not computed."""
_WINDOW, _HEADS, _SCALE = 4, 4, 0.8
_AT_ONCE = 4  # crops


class ChannelAttention(nn.Module):
    """TAB: which channels belong together, over all places: (B, C, N) -> (B, C, N)."""

    def __init__(self, places: int) -> None:
        super().__init__()
        self.c_q, self.c_k, self.c_v = (nn.Linear(places, places) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.c_q(x) @ self.c_k(x).transpose(1, 2) * x.shape[2] ** -0.5).softmax(dim=-1)
        mixed = weights @ self.c_v(x)
        turned = mixed.transpose(1, 2).reshape(x.shape)  # reshaped, not turned back: so the weights were trained
        result: Tensor = x + turned
        return result


class WindowBlock(nn.Module):
    """Attention in windows of 4 × 4 places, shifted or not, and an MLP: (B, H, W, C) -> the same."""

    def __init__(self, width: int, hidden: int, shift: int) -> None:
        from torchvision.models.swin_transformer import ShiftedWindowAttention

        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = ShiftedWindowAttention(width, [_WINDOW, _WINDOW], [shift, shift], _HEADS)
        parts = {"fc1": nn.Linear(width, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class WindowLayer(nn.Module):
    """Two blocks and a convolution."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(WindowBlock(width, hidden, 0), WindowBlock(width, hidden, _WINDOW // 2))
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.blocks(x).movedim(-1, 1)).relu().movedim(1, -1)
        return result


class WindowStage(nn.Module):
    """Two layers, each added to .8 of what it gives: (B, C, H, W) -> the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(WindowLayer(width, hidden) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(1, -1)
        for layer in self.layers:
            x = _SCALE * layer(x) + x
        return x.movedim(-1, 1)


class Maniqa(nn.Module):
    """Crops (B, 3, 224, 224) in [0, 1] -> (B,). But for the ViT's, names are those of the published file.

    Args:
        vit: transformers' BlipVisionModel, which is built as timm's ViT; ten blocks.
        width, hidden: numbers of a place, and within the MLPs.
        cells: places a side.
        name: of the file, which says what it was trained with.
    """

    def __init__(self, vit: Any, width: int, hidden: int, cells: int, name: str) -> None:
        super().__init__()
        self.vit, self.cells, self.name = vit, cells, name
        self.tablock1, self.tablock2 = (
            nn.Sequential(ChannelAttention(cells**2), ChannelAttention(cells**2)) for _ in range(2)
        )
        self.conv1, self.conv2 = nn.Conv2d(len(BLOCKS) * width, width, 1), nn.Conv2d(width, width // 2, 1)
        self.swintransformer1, self.swintransformer2 = WindowStage(width, hidden), WindowStage(width // 2, hidden)
        half = width // 2
        self.fc_score, self.fc_weight = (
            nn.Sequential(nn.Linear(half, half), nn.ReLU(), nn.Identity(), nn.Linear(half, 1), last)
            for last in (nn.ReLU(), nn.Sigmoid())
        )

    @property
    def description(self) -> str:
        """For tables."""
        return f"MANIQA {self.name}, {CROPS} crops of {SIDE}"

    def forward(self, crops: Tensor) -> Tensor:
        x = torch.cat(self._inner(2 * crops - 1), dim=2).transpose(1, 2)
        grid = (self.cells, self.cells)
        x = self.swintransformer1(self.conv1(self.tablock1(x).unflatten(2, grid)))
        x = self.swintransformer2(self.conv2(self.tablock2(x.flatten(2)).unflatten(2, grid)))
        places = x.flatten(2).transpose(1, 2)
        scores, weights = self.fc_score(places), self.fc_weight(places)
        result: Tensor = (scores * weights).sum((1, 2)) / weights.sum((1, 2))
        return result

    def _inner(self, seen: Tensor) -> list[Tensor]:
        """Each block's result without the class token, by hooks: what a layer takes and gives differs by version."""
        found: list[Tensor] = []

        def keep(_: nn.Module, __: Any, given: Any) -> None:
            found.append((given[0] if isinstance(given, tuple) else given)[:, 1:])

        hooks = [self.vit.encoder.layers[number].register_forward_hook(keep) for number in BLOCKS]
        try:
            self.vit(pixel_values=seen)
        finally:
            for hook in hooks:
                hook.remove()
        return found


def crop_places(high: int, wide: int) -> list[tuple[int, int]]:
    """Top and left of each crop: chance, but the same for a size always."""
    chance = torch.Generator().manual_seed(0)
    return [
        (
            int(torch.randint(high - SIDE + 1, (), generator=chance)),
            int(torch.randint(wide - SIDE + 1, (), generator=chance)),
        )
        for _ in range(CROPS)
    ]


@torch.no_grad()
def maniqa(pictures: Tensor, network: Callable[[Tensor], Tensor], looked: Callable[[], None] | None = None) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N,) float32 on the CPU.

    Args:
        network: a :class:`Maniqa`, on the device where it shall compute.
        looked: called before each four crops; may raise to cancel.

    Raises:
        ValueError: pictures of another shape or range, or below 224 pixels a side.
    """
    check_pictures(pictures)
    high, wide = pictures.shape[2:]
    if min(high, wide) < SIDE:
        raise ValueError(
            f"MANIQA looks at pieces of {SIDE} × {SIDE} pixels, these pictures have {wide} × {high}; enlarging them "
            "would be scored as blur"
        )
    places = crop_places(high, wide)
    if high == wide == SIDE:
        places = places[:1]
    weight = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    device = pictures.device if weight is None else weight.device
    rows = []
    for picture in pictures:
        crops = torch.stack([picture[:, top : top + SIDE, left : left + SIDE] for top, left in places])
        parts = []
        for first in range(0, len(crops), _AT_ONCE):
            if looked is not None:
                looked()
            part = crops[first : first + _AT_ONCE].to(device, torch.float32)
            parts.append(network(part).float().cpu())
        rows.append(torch.cat(parts).mean())
    scores = torch.stack(rows)
    if not scores.isfinite().all():
        raise ValueError("MANIQA gives a score that is no number: its file may be damaged, download it again")
    return scores


def mean_maniqa(pictures: Tensor, network: Callable[[Tensor], Tensor]) -> float:
    """Mean of :func:`maniqa`."""
    return float(maniqa(pictures, network).mean())
