"""The pieces of a mask that hang together, each as an object."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from .found import Boxes, Objects

EVERYWHERE = np.ones((3, 3), dtype=bool)  # pixels that touch at a corner belong together
SMALLEST = 0.0005
"""Part of the picture; what is smaller is a crumb."""


def components(mask: Tensor, smallest: float = SMALLEST, most: int = 64) -> tuple[Boxes, list[Tensor]]:
    """The pieces of a mask (H, W) above ½, largest first, as boxes and as (H, W) bool masks.

    A score is the mask's mean over the piece, in [0, 1]; labels are empty.

    Args:
        smallest: pieces below this part of the picture are left out.
        most: so many at most.
    """
    values = mask.detach().to("cpu", torch.float32).numpy()
    numbers, count = ndimage.label(values > 0.5, EVERYWHERE)
    if not count:
        return Boxes.none(), []
    areas = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    order = [number for number in np.argsort(-areas, kind="stable") if areas[number] >= smallest * values.size][:most]
    if not order:
        return Boxes.none(), []
    places = ndimage.find_objects(numbers)
    scores = ndimage.mean(values, numbers, np.array(order) + 1)
    boxes = [[places[n][1].start, places[n][0].start, places[n][1].stop, places[n][0].stop] for n in order]
    masks = [torch.from_numpy(numbers == number + 1) for number in order]
    found = Boxes(
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(np.clip(scores, 0, 1), dtype=torch.float32),
        ("",) * len(order),
    )
    return found, masks


def objects_of_mask(mask: Tensor, label: str = "", smallest: float = 0.0, most: int = 64) -> Objects:
    """A mask (H, W) in [0, 1] of anybody's -> its pieces as objects; soft edges stay, what is ½ or less does not."""
    boxes, masks = components(mask, smallest, most)
    values = mask.detach().to("cpu", torch.float32)
    whole = torch.zeros(len(masks), *mask.shape)
    for row, piece in zip(whole, masks, strict=True):
        torch.where(piece, values, row, out=row)
    return Objects(whole, boxes.boxes, boxes.scores, (label,) * len(masks))
