from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from likeness.trainers.config import TrainingConfig
from likeness.trainers.levels import draw_sigmas, explicit_shift, quantiles, resolution_shift, shifted, timesteps


def normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))


def mode_cdf(t: Tensor) -> Tensor:
    """P(f(V) <= t) for f of the SD3 paper with scale 1.29, which falls from 1 to 0: 1 - f⁻¹(t), by bisection."""
    low, high = torch.zeros_like(t), torch.ones_like(t)
    for _ in range(60):
        middle = (low + high) / 2
        above = 1 - middle - 1.29 * (torch.cos(math.pi / 2 * middle) ** 2 - 1 + middle) > t
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return 1 - low


CDF = {
    "uniform": lambda u: u,
    "logit-normal": lambda u: normal_cdf((torch.logit(u) - 0.5) / 0.8),
    "sigmoid": lambda u: normal_cdf(torch.logit(u) / 0.8),
    # u = c v/(1+(c-1)v), so v = u/(c-(c-1)u)
    "shift": lambda u: normal_cdf(torch.logit(u / (3 - 2 * u)) / 0.8),
    "mode": mode_cdf,
    # The SD3 paper's density 2/(π - 2πt + 2πt²), integrated.
    "cosmap": lambda t: 0.5 + torch.atan(2 * t - 1) * 2 / math.pi,
}


def distance(drawn: Tensor, cdf: Tensor) -> float:
    """Kolmogorov-Smirnov, of sorted values and the cdf at them."""
    return (cdf - torch.arange(1, len(drawn) + 1) / len(drawn)).abs().max().item()


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("sampling", sorted(CDF))
def test_sigmas_follow_the_distribution(sampling: str, kind: str) -> None:
    """Fails if quantiles are not distributed as named (Kolmogorov-Smirnov against the closed form)."""
    sigmas = torch.arange(1, 1001) / 1000
    count = 20_000
    drawn = draw_sigmas(
        sigmas,
        count,
        torch.Generator().manual_seed(1),
        sampling,
        parameterisation=kind,  # type: ignore[arg-type]
        mean=0.5,
        std=0.8,
        mode_scale=1.29,
        shift=3.0 if sampling == "shift" else None,
    )
    values = drawn.double().sort().values
    # 1.95/√n is the 0.1% bound; ties are 1/1000 wide, times 3 where the shift stretches them.
    assert distance(values, CDF[sampling](values.clamp(1e-4, 1 - 1e-4))) < 1.95 / math.sqrt(count) + 4e-3


def test_mode_of_scale_zero_is_uniform() -> None:
    """Fails if the scale's sign or a term of the mode's formula is wrong: of scale 0 only 1 - v may be left."""
    chance = (torch.Generator().manual_seed(2), torch.Generator().manual_seed(2))
    assert torch.allclose(quantiles(50, chance[0], "mode", mode_scale=0.0), 1 - quantiles(50, chance[1]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(0, 2**63 - 1), st.sampled_from(sorted(CDF)), st.floats(-1, 1.75))
def test_sigmas_are_trained_ones(count: int, seed: int, sampling: str, scale: float) -> None:
    """Fails if a σ is drawn that the model never saw, or a quantile leaves [0, 1]."""
    sigmas = torch.tensor([0.1, 0.5, 3.0])
    for kind, shift in (("eps", None), ("eps", 2.0), ("v", 0.3), ("flow", None)):
        drawn = draw_sigmas(
            sigmas,
            count,
            torch.Generator().manual_seed(seed),
            sampling,
            parameterisation=kind,  # type: ignore[arg-type]
            std=3.0,
            mode_scale=scale,
            shift=shift,
        )
        assert drawn.shape == (count,)
        assert set(drawn.tolist()) <= set(sigmas.tolist())


@settings(max_examples=40, deadline=None)
@given(st.floats(0.1, 12), st.floats(0.1, 12), st.integers(0, 2**32))
def test_a_flow_is_not_shifted_twice(own: float, asked: float, seed: int) -> None:
    """A model whose schedule holds a shift, asked for one, gets that alone: fails if the two are multiplied."""
    plain = torch.arange(1, 1001) / 1000
    of_model = shifted(plain, own)  # as the host's ModelSampling makes it

    def drawn(sigmas: Tensor, shift: float | None) -> Tensor:
        chance = torch.Generator().manual_seed(seed)
        return draw_sigmas(sigmas, 64, chance, "logit-normal", parameterisation="flow", shift=shift)

    assert torch.equal(drawn(of_model, asked), drawn(plain, asked))
    assert torch.allclose(drawn(of_model, own), drawn(of_model, None), rtol=1e-5)
    assert torch.allclose(drawn(of_model, 1.0), drawn(plain, None))
    assert torch.allclose(drawn(of_model, asked), shifted(drawn(plain, None), asked), rtol=1e-5)
    assert (drawn(of_model, asked) > 0).all() and (drawn(of_model, asked) <= 1).all()


def test_shift_scales_the_noise_to_signal_ratio() -> None:
    """Fails if c does other than σ/(1-σ) -> c σ/(1-σ), which is what the SD3 paper derives it from."""
    sigma = torch.linspace(0.01, 0.99, 20, dtype=torch.float64)
    moved = shifted(sigma, 3.0)
    assert torch.allclose(moved / (1 - moved), 3 * sigma / (1 - sigma))


def test_shift_by_resolution_is_fluxs() -> None:
    """Fails if μ is not .5 at 256 tokens and 1.15 at 4096, linear between: the factor is e^μ."""
    assert resolution_shift(256) == pytest.approx(math.exp(0.5))
    assert resolution_shift(4096) == pytest.approx(math.exp(1.15))
    assert resolution_shift((256 + 4096) / 2) == pytest.approx(math.exp((0.5 + 1.15) / 2))
    assert resolution_shift(1024) == pytest.approx(1.88, abs=5e-3)


def test_which_shift_is_asked_for() -> None:
    """Fails if an old configuration gets a shift it did not have, or a new one another than it names."""
    cases = {
        ("uniform", "model"): None,
        ("logit-normal", "none"): 1.0,
        ("mode", "static"): 2.5,
        ("shift", "model"): 2.5,
        ("shift", "resolution"): math.exp(1.15),
        ("uniform", "resolution"): math.exp(1.15),
    }
    for (sampling, shifting), expected in cases.items():
        config = TrainingConfig(timestep_sampling=sampling, timestep_shifting=shifting, timestep_shift=2.5).validate()
        assert explicit_shift(config, 4096) == (None if expected is None else pytest.approx(expected))


def test_timesteps_are_places_in_the_schedule() -> None:
    """Fails if a level's place is counted from 1, or a flow's time is other than σ."""
    sigmas = torch.tensor([0.1, 0.5, 3.0, 14.0])
    assert timesteps(sigmas, sigmas, "eps").tolist() == [0, 0.25, 0.5, 0.75]
    assert torch.equal(timesteps(torch.tensor([0.3, 1.0]), sigmas, "flow"), torch.tensor([0.3, 1.0]))


def test_unknown_sampling_is_an_error() -> None:
    """Fails if a name that is not known draws something all the same."""
    with pytest.raises(ValueError, match="'beta'"):
        quantiles(1, torch.Generator(), "beta")
