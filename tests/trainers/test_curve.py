from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from likeness.trainers.curve import loss_curve, smoothed


def test_curve_is_an_image_of_the_size_asked_for() -> None:
    """Fails if the picture has another shape or range, is blank, or draws through pyplot's globals."""
    figures = sys.modules.get("matplotlib.pyplot")
    image = loss_curve([1.0 / (k + 1) for k in range(100)], width=400, height=300)
    assert image.shape == (1, 300, 400, 3) and image.dtype == torch.float32
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
    assert figures is None or not figures.get_fignums()


@pytest.mark.parametrize("losses", [[], [0.5], [0.0, 0.0]])
def test_short_runs_have_a_curve_too(losses: list[float]) -> None:
    """Fails if a run that was cancelled at once crashes in its plot."""
    assert loss_curve(losses).shape == (1, 448, 768, 3)


def test_smoothed_is_the_moving_mean() -> None:
    """Fails if the mean is over other than the last steps."""
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    by_hand = [np.mean(losses[max(0, k - 2) : k + 1]) for k in range(5)]
    assert smoothed(losses, 3) == pytest.approx(by_hand)
