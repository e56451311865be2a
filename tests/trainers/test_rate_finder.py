from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from likeness.trainers.config import TrainingConfig
from likeness.trainers.outcome import Callbacks, TrainingCancelled
from likeness.trainers.rate_finder import find_rate, local_mean, suggested_rate, sweep_plot, sweep_table

RUN = TrainingConfig(steps=60, rank=2, alpha=2.0, targets="all", batch_size=2, seed=5)


def test_the_suggestion_is_where_it_falls_most_steeply() -> None:
    """Fails if the slope is taken over steps or rates in place of their logarithm, or behind the minimum."""
    rates = [10 ** (-5 + 0.05 * step) for step in range(100)]

    def loss(rate: float) -> float:  # falls as a logistic curve around 1e-3, then explodes around 1e-1
        return 1 - 0.5 / (1 + math.exp(-4 * math.log10(rate / 1e-3))) + 5 / (1 + math.exp(-8 * math.log10(rate / 0.3)))

    assert suggested_rate(rates, [loss(rate) for rate in rates]) == pytest.approx(1e-3, rel=0.13)
    with pytest.raises(ValueError, match="fell at none"):
        suggested_rate(rates, [float(step) for step in range(100)])


def test_smoothing_does_not_lag() -> None:
    """Fails if the curve is moved to higher rates, and the suggestion with it; a line must stay where it is."""
    line = [3.0 - 0.1 * step for step in range(12)]
    assert local_mean(line)[2:-2] == pytest.approx(line[2:-2])
    assert local_mean([1.0]) == [1.0] and local_mean([0.0, 9.0]) == pytest.approx([3.6, 5.4])


def test_a_sweep_of_the_toy_finds_a_rate_and_leaves_no_trace(toy: Any, data: Any) -> None:
    """Fails if the loss is not measured on the same noise, the sweep goes on after an explosion, or the model moves."""
    denoiser = toy()
    before = {name: value.clone() for name, value in denoiser.module.state_dict().items()}
    sweep = find_rate(denoiser, data(3), RUN, lowest=1e-6, highest=100.0)
    assert sweep.exploded and len(sweep.rates) == len(sweep.losses) < 60
    assert 1e-4 < sweep.suggested < 1.0
    steps = [abs(b - a) for a, b in zip(sweep.losses[:15], sweep.losses[1:15], strict=False)]
    assert max(steps) < 0.01 * sweep.losses[0], "at tiny rates the curve is flat: only the rate may move it"
    after = denoiser.module.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert sweep == find_rate(toy(), data(3), RUN, lowest=1e-6, highest=100.0)
    plot, table = sweep_plot(sweep), sweep_table(sweep)
    assert plot.shape == (1, 448, 768, 3) and 0 <= float(plot.min()) < float(plot.max()) <= 1
    assert len(table.splitlines()) == len(sweep.rates) + 2 and "suggested" in table


def test_errors_and_cancel(toy: Any, data: Any) -> None:
    """Fails if a sweep that can show nothing is made, or cancel is not heard."""
    with pytest.raises(ValueError, match="0 < lowest < highest"):
        find_rate(toy(), data(2), RUN, lowest=1.0, highest=0.1)
    with pytest.raises(ValueError, match="finds the rate itself"):
        find_rate(toy(), data(2), TrainingConfig(optimizer="prodigy", learning_rate=1.0, steps=20))
    with pytest.raises(TrainingCancelled):
        find_rate(toy(), data(2), RUN, callbacks=Callbacks(cancelled=lambda: True))
