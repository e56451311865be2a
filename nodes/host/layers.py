"""The layers of a MODEL."""

from __future__ import annotations

from typing import Any


def model_layers(model: Any) -> dict[str, tuple[int, ...]]:
    """Canonical layer -> shape of its weight."""
    state = model.model.state_dict()
    names = (key for key in state if key.startswith("diffusion_model.") and key.endswith(".weight"))
    return {key.removesuffix(".weight"): tuple(state[key].shape) for key in names}
