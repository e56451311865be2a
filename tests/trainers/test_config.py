from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.trainers.config import SCHEDULES, TrainingConfig


@given(
    st.builds(
        TrainingConfig,
        steps=st.integers(1, 10**6),
        learning_rate=st.floats(1e-9, 1.0),
        seed=st.integers(0, 2**64 - 1),
        optimizer=st.sampled_from(("adamw", "adafactor", "lion")),
        schedule=st.sampled_from(SCHEDULES),
        gradient_checkpointing=st.booleans(),
    )
)
def test_json_round_trip(config: TrainingConfig) -> None:
    """Fails if a field is lost or rounded on the way through JSON."""
    assert TrainingConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("learning_rate", -1e-4),
        ("learning_rate", float("nan")),
        ("rank", 0),
        ("alpha", -1.0),
        ("caption_dropout", 1.5),
        ("dropout", 1.0),
        ("optimizer", "adam2"),
        ("targets", "custom"),
        ("adapter_dtype", "fp16"),
        ("min_snr_gamma", -1.0),
    ],
)
def test_wrong_values_are_named(field: str, value: object) -> None:
    """Fails if a value that cannot be trained with passes, or the message does not name its field."""
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(TrainingConfig(), **{field: value}).validate()


def test_unknown_field_is_an_error() -> None:
    """Fails if an option of a newer version is dropped in silence."""
    with pytest.raises(ValueError, match="warp_speed"):
        TrainingConfig.from_json('{"warp_speed": 9}')
    with pytest.raises(ValueError, match="JSON object"):
        TrainingConfig.from_json("[]")
