"""The curves of a ZipLoRA run."""

from __future__ import annotations

import pytest

from likeness.trainers.zip_lora import Zipped
from likeness.trainers.zip_plot import normalised_terms, zip_curves
from likeness.trainers.zip_questions import Fit
from likeness.trainers.zip_state import ZipState


def run(steps: int, overlap: float) -> Zipped:
    records = tuple({"step": n, "fit_1": 1.0 / n, "fit_2": 0.5, "overlap": overlap / n} for n in range(1, steps + 1))
    fits = (Fit(base=2.0, plain=0.5, merged=0.2), Fit(base=4.0, plain=1.0, merged=0.5))
    return Zipped({}, steps, records, fits, ZipState(steps, records, {}, {}), 0, 0, 1.0)


def test_terms_are_shares() -> None:
    """Fails where a fit is divided by another LoRA's effect, or the overlap does not begin at 1."""
    found = dict(normalised_terms(run(2, 4.0), ["a", "b"]))
    assert found == {"a": pytest.approx([0.5, 0.25]), "b": pytest.approx([0.125, 0.125]), "overlap": [1.0, 0.5]}
    assert set(dict(normalised_terms(run(2, 0.0), ["a", "b"]))) == {"a", "b"}


@pytest.mark.parametrize("steps", [0, 1, 30])
def test_picture(steps: int) -> None:
    """Of any number of steps, and of names longer than the bars are wide."""
    assert zip_curves(run(steps, 4.0), ["a", "b" * 60]).shape == (1, 512, 1024, 3)
