"""Where the largest face of a picture is: MTCNN (Zhang et al. 2016, arXiv 1604.02878) of facenet-pytorch.

Its three small networks are inside that package (MIT, 2 MB). A picture without a face gives None, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .features import check_pictures

PACKAGE = "facenet-pytorch==2.6.0"
_SMALLEST = 20  # pixels of a face that MTCNN looks for; a smaller picture cannot hold one


@dataclass(frozen=True)
class Face:
    """The largest face of a picture.

    Attributes:
        picture: the whole picture it is in, 8-bit RGB.
        box: left, top, right, bottom in pixels; may reach out of the picture.
        points: eyes (the picture's left one first), nose, corners of the mouth: (5, 2) of x, y in pixels.
        probability: the last network's, .7 or more.
    """

    picture: Image.Image
    box: tuple[float, float, float, float]
    points: Tensor
    probability: float


Detector = Callable[[Image.Image], Face | None]


def load_mtcnn() -> Any:
    """The detector's module with its usual thresholds, on the CPU.

    Raises:
        ValueError: facenet-pytorch is not installed.
    """
    try:
        from facenet_pytorch import MTCNN
    except ImportError as why:
        raise ValueError(
            f"faces are found by facenet-pytorch, which is not installed ({why}): run `pip install --no-deps "
            f"{PACKAGE}` (--no-deps, for it asks for an old torch that it does not need)"
        ) from why
    return MTCNN(image_size=160, margin=0, select_largest=True)


def detect(mtcnn: Any, picture: Image.Image) -> Face | None:
    """The largest face in the picture, or None."""
    if min(picture.size) < _SMALLEST:
        return None
    mtcnn.device = next(mtcnn.parameters()).device  # it keeps a note of its own, which a move does not change
    boxes, probabilities, points = mtcnn.detect(picture, landmarks=True)
    if boxes is None or len(boxes) == 0:
        return None
    left, top, right, bottom = (float(side) for side in boxes[0])
    landmarks = torch.from_numpy(np.asarray(points[0], dtype=np.float64))
    return Face(picture, (left, top, right, bottom), landmarks, float(probabilities[0]))


def find_faces(
    pictures: Tensor, detector: Detector, progress: Callable[[int, int], None] | None = None
) -> list[Face | None]:
    """(N, 3, H, W) in [0, 1] -> the largest face of each, or None. progress(done, total) after each picture.

    Raises ValueError for pictures of another shape, dtype or range.
    """
    check_pictures(pictures)
    found = []
    for number, picture in enumerate(pictures, 1):
        levels = (picture.detach().float().cpu().permute(1, 2, 0) * 255).round().to(torch.uint8)
        found.append(detector(Image.fromarray(levels.numpy())))
        if progress is not None:
            progress(number, len(pictures))
    return found
