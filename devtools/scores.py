"""The demo's scores: subject similarity of generated pictures to the references."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from PIL import Image

from ..metrics.features import LITE0_PACKAGE, efficientnet_lite0
from ..metrics.similarity import subject_similarity


def before_and_after(
    references: Sequence[Image.Image], before: Sequence[Image.Image], after: Sequence[Image.Image]
) -> dict[str, Any]:
    """DreamBooth's figure, the mean cosine over all pairs of a generated and a reference picture, for both sides."""
    features = efficientnet_lite0()
    wanted = tensor(references)
    scored = {
        name: round(subject_similarity(tensor(pictures), wanted, features), 4)
        for name, pictures in (("before", before), ("after", after))
    }
    return {"metric": "mean cosine of EfficientNet-Lite0 features", "features": LITE0_PACKAGE, **scored}


def tensor(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """RGB pictures of one size -> (N, 3, H, W) in [0, 1]."""
    return torch.stack([torch.from_numpy(numpy.array(picture)) for picture in pictures]).permute(0, 3, 1, 2) / 255
