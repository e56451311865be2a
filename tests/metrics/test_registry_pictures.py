"""What the registry says of prompt, subject and pair metrics is what their functions do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from likeness.metrics.registry import METRICS

EYE = torch.eye(3)


def corner(pictures: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(pictures[:, :, 0, 0] + 0.01, dim=1)


def colour(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(1, 3, 1, 1).expand(-1, -1, 40, 40)


def pair(strength: float) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    return noise, (1 - strength) * noise + strength * noise.flip(3)


def subject(good: bool) -> tuple[Any, ...]:
    return colour(1, 0, 0), colour(0.9, 0.1, 0) if good else colour(0, 0, 1), corner


CASES: dict[str, Callable[[bool], tuple[Any, ...]]] = {
    "clip_i": subject,
    "dino": subject,
    "dinov2": subject,
    "clip_t": lambda good: (EYE[:1], EYE[:1] if good else -EYE[:1]),
    "clip_t_all_pairs": lambda good: (EYE[:1], EYE if good else -EYE),
    "clip_score": lambda good: (EYE[:1], EYE[:1] if good else -EYE[:1]),
    "image_reward": lambda good: (colour(1, 0, 0), ["red"], lambda _, prompts: torch.tensor([1.0 if good else -1.0])),
    "ssim": lambda good: pair(0.1 if good else 0.9),
    "psnr": lambda good: pair(0.1 if good else 0.9),
    "lpips": lambda good: (*pair(0.1 if good else 0.9), lambda a, b: (a - b).abs().mean((1, 2, 3))),
}


@pytest.mark.parametrize("name", CASES)
def test_the_registry_tells_the_truth_of_pictures(name: str) -> None:
    """A clearly better case against a worse one. Fails where the stated direction or range is not the function's."""
    metric = METRICS[name]
    better, worse = (metric.function(*CASES[name](good)) for good in (True, False))
    low, high = metric.range
    assert low <= better <= high and low <= worse <= high
    assert better > worse if metric.direction == "higher" else better < worse
