"""What the metrics of whole sets of features ask of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def check_sets(generated: Tensor, references: Tensor, least: int = 2) -> None:
    """Raises ValueError unless both are finite floats (N, D) and (M, D) with at least `least` rows."""
    for name, features in (("generated", generated), ("reference", references)):
        if features.ndim != 2 or features.shape[1] == 0 or not features.is_floating_point():
            raise ValueError(f"{name} features must be floats (pictures, D), got {tuple(features.shape)}")
        if len(features) < least:
            raise ValueError(
                f"there are {len(features)} {name} pictures; a set's metric needs {least} or more, and means something "
                "from some dozens on"
            )
        if not features.isfinite().all():
            bad = int((~features.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(f"{name} features of picture {bad} hold NaN or infinity; leave that picture out")
    if generated.shape[1] != references.shape[1]:
        raise ValueError(
            f"generated features have {generated.shape[1]} numbers, reference features {references.shape[1]}: "
            "take both from the same network"
        )


def halves(features: Tensor, splits: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """`splits` times: a random half (⌊n / 2⌋ rows) and as many of the others."""
    chance = torch.Generator().manual_seed(seed)
    half = len(features) // 2
    for _ in range(splits):
        order = torch.randperm(len(features), generator=chance).to(features.device)
        yield features[order[:half]], features[order[half : 2 * half]]
