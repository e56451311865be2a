"""Shifts of noise levels against the host's own schedules, which are shifted already."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from likeness.trainers.levels import draw_sigmas, resolution_shift


def schedule(kind: str, shift: float) -> Tensor:
    import comfy.model_sampling

    sampling = getattr(comfy.model_sampling, kind)()
    sampling.set_parameters(shift=shift)
    return sampling.sigmas.float()


def drawn(sigmas: Tensor, shift: float | None) -> Tensor:
    chance = torch.Generator().manual_seed(3)
    return draw_sigmas(sigmas, 500, chance, "logit-normal", parameterisation="flow", shift=shift)


@pytest.mark.parametrize(
    ("kind", "own", "factor"),
    [
        ("ModelSamplingDiscreteFlow", 3.0, 3.0),  # SD3
        ("ModelSamplingDiscreteFlow", 6.0, 6.0),  # Lumina2
        ("ModelSamplingFlux", 1.15, math.exp(1.15)),
    ],
)
def test_an_explicit_shift_takes_the_place_of_the_hosts(
    comfy: SimpleNamespace, kind: str, own: float, factor: float
) -> None:
    """Fails if an explicit shift comes on top of the model's, or the model's own factor gives another density."""
    sigmas = schedule(kind, own)
    assert torch.allclose(drawn(sigmas, factor), drawn(sigmas, None), rtol=1e-4)
    unshifted = schedule(kind, 1.0 if kind == "ModelSamplingDiscreteFlow" else 0.0)
    assert torch.allclose(drawn(sigmas, 1.0), drawn(unshifted, None), rtol=1e-4)
    other = schedule(kind, 2.0 if kind == "ModelSamplingDiscreteFlow" else math.log(2.0))
    assert torch.allclose(drawn(sigmas, 2.0), drawn(other, None), rtol=1e-4)


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 1024), (832, 1216)])
def test_shift_by_resolution_is_the_hosts_node(comfy: SimpleNamespace, width: int, height: int) -> None:
    """Fails if the rule is other than that of the host's ModelSamplingFlux node for the same size of picture."""
    slope = (1.15 - 0.5) / (4096 - 256)
    mu = width * height / (8 * 8 * 2 * 2) * slope + 0.5 - slope * 256
    tokens = (width // 8) * (height // 8) / 2**2
    sigmas = schedule("ModelSamplingFlux", 1.15)
    assert torch.allclose(
        drawn(sigmas, resolution_shift(tokens)), drawn(schedule("ModelSamplingFlux", mu), None), rtol=1e-4
    )
