from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from likeness.trainers.curve import loss_curve, smoothed, training_curves


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


def drawn_where(image: torch.Tensor, color: tuple[int, int, int]) -> int:
    """How many pixels have about this colour."""
    off = (image[0] * 255 - torch.tensor(color, dtype=torch.float32)).abs().amax(-1)
    return int((off < 40).sum())


def test_all_curves_of_a_log_are_drawn() -> None:
    """Fails if a panel is left out: each line's own colour must be in the picture, and only where it is in the log."""
    records = [
        {
            "step": step,
            "loss": 1 / step,
            "loss_low_sigma": 0.5,
            "loss_high_sigma": 0.2,
            "subject_loss": 0.3,
            "prior_loss": 0.1,
            "learning_rate": 1e-4,
            "gradient_norm": 0.5 + 0.1 * (step % 3),
            **({"delta_norm": step / 10} if step % 5 == 0 else {}),
        }
        for step in range(1, 41)
    ]
    losses = [1 / step for step in range(1, 41)]
    image = training_curves(losses, records, 800, 600)
    assert image.shape == (1, 600, 800, 3)
    colors = {"low": (59, 143, 90), "middle": (201, 138, 27), "high": (176, 58, 72), "kept": (122, 79, 163)}
    there = {name: drawn_where(image, color) > 40 for name, color in colors.items()}
    assert there == {"low": True, "middle": False, "high": True, "kept": True}
    without = training_curves(losses, [{"step": 1}], 800, 600)
    assert all(drawn_where(without, color) < 5 for color in colors.values())


@pytest.mark.parametrize("records", [[], [{"step": 1, "gradient_norm": 0.0, "delta_norm": 0.0}]])
def test_curves_of_nothing(records: list[dict[str, float]]) -> None:
    """Fails if a run that was cancelled at once, or learnt nothing, crashes in its plot."""
    assert training_curves([0.5] * len(records), records).shape == (1, 640, 1024, 3)
