"""The learning rate of who does not choose one: the law, its anchor, and where it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from likeness.trainers.auto_rate import HIGHEST, automatic_rate, width, with_rate
from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train


def layers(n: int, count: int) -> list[nn.Module]:
    with torch.device("meta"):
        return [nn.Linear(n, 8)] * count


def test_models_of_known_sizes_get_what_they_are_trained_with() -> None:
    """In 1000 steps SDXL 1e-4; SD1.5 and SD3 within the published 1e-4 … 5e-4; Flux the floor.

    Fails if width or depth were not counted, or the wrong way round.
    """
    assert automatic_rate(layers(1280, 560)) == 1e-4
    assert automatic_rate(layers(768, 128)) == pytest.approx(3.5e-4)
    assert automatic_rate(layers(1536, 95)) == pytest.approx(2e-4)
    assert automatic_rate(layers(3072, 228)) == 1e-4


@settings(deadline=None)
@given(st.integers(8, 4096), st.integers(1, 600), st.integers(1, 3000))
def test_the_law_between_its_bounds(n: int, count: int, steps: int) -> None:
    """Twice the width halves it, four times the layers or steps too, two digits, in bounds. Fails otherwise."""
    one = automatic_rate(layers(n, count), steps=steps)
    assert 1e-4 <= one <= HIGHEST and float(f"{one:.2g}") == one
    for wider, more, longer in ((2, 1, 1), (1, 4, 1), (1, 1, 4)):
        other = automatic_rate(layers(wider * n, more * count), steps=longer * steps)
        if other > 1e-4 and one < HIGHEST:
            assert other == pytest.approx(one / 2, rel=0.06)  # two digits


def test_optimizers_with_other_steps() -> None:
    """Fails if Lion got AdamW's rate, Prodigy other than its 1, or SGD any."""
    assert automatic_rate(layers(1280, 560), "lion") == pytest.approx(3.3e-5)
    assert automatic_rate(layers(1280, 560), "prodigy") == 1.0
    with pytest.raises(ValueError, match="sgd"):
        automatic_rate(layers(1280, 560), "sgd")


def test_width_is_the_fan_in() -> None:
    """torch's own rule is the oracle. Fails for convolutions if the kernel is left out."""
    for layer in (nn.Linear(6, 4), nn.Conv2d(6, 4, 3), nn.Conv2d(6, 4, (1, 5))):
        assert width(layer) == nn.init._calculate_fan_in_and_fan_out(layer.weight)[0]


def test_a_run_writes_down_the_rate_it_chose(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the loop ran at 0, or if resuming would meet another rate; a chosen rate must stay as it is."""
    config = TrainingConfig(steps=2, rank=2, alpha=2.0, learning_rate=0.0, targets="all")
    result = train(toy(), data(), config, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())["learning_rate"]
    assert written == result.config.learning_rate == with_rate(config, toy().module).learning_rate > 0
    mine = TrainingConfig(learning_rate=3e-3)
    assert with_rate(mine, toy().module) is mine
