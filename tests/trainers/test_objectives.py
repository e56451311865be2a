from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from likeness.trainers.config import TrainingConfig
from likeness.trainers.objectives import (
    debiased_factor,
    diffusion_loss,
    loss_factor,
    min_snr_factor,
    p2_factor,
    scheduled_huber_c,
    snr,
    truncated_snr_factor,
    x0_weight,
)


def network_error(kind: str, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(what the network was to predict, what it predicted, x0, x0_hat) by the textbook, in double precision."""
    chance = torch.Generator().manual_seed(3)
    x0, noise, guess = (torch.randn(len(sigma), 2, 3, 3, generator=chance, dtype=torch.float64) for _ in range(3))
    s = sigma.view(-1, 1, 1, 1)
    if kind == "flow":
        noisy = (1 - s) * x0 + s * noise
        return noise - x0, guess, x0, noisy - s * guess  # dx/dσ = noise - x0
    noisy = x0 + s * noise
    if kind == "eps":
        return noise, guess, x0, noisy - s * guess
    # Salimans & Ho 2022: α = 1/√(1+σ²), σ_vp = σ/√(1+σ²), z = α x0 + σ_vp ε, v = α ε - σ_vp x0, x0 = α z - σ_vp v.
    alpha, sigma_vp = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()
    z = alpha * x0 + sigma_vp * noise
    return alpha * noise - sigma_vp * x0, guess, x0, alpha * z - sigma_vp * guess


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_loss_is_the_usual_loss_of_the_parameterisation(kind: str) -> None:
    """Fails if the x0-space weight is not the network's own squared error, at any σ."""
    sigma = torch.tensor([0.03, 0.5, 0.97] if kind == "flow" else [0.03, 1.0, 14.6], dtype=torch.float64)
    target, guess, x0, x0_hat = network_error(kind, sigma)
    usual = (guess - target).square().mean()
    assert diffusion_loss(x0_hat, x0, sigma, kind).item() == pytest.approx(usual.item(), rel=1e-9)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_is_the_papers(kind: str, gamma: float) -> None:
    """Fails if min-SNR weighs an ε loss by other than min(SNR,γ)/SNR, v by /(SNR+1), or x0 by other than min(SNR,γ)."""
    sigma = torch.tensor([0.1, 0.4, 0.9] if kind == "flow" else [0.1, 0.4, 5.0], dtype=torch.float64)
    target, guess, x0, x0_hat = network_error(kind, sigma)
    ratio = ((1 - sigma) / sigma).square() if kind == "flow" else 1 / sigma.square()
    capped = torch.minimum(ratio, torch.tensor(gamma, dtype=torch.float64))
    in_x0 = (capped * (x0_hat - x0).square().flatten(1).mean(1)).mean()
    factor = min_snr_factor(sigma, kind, gamma)
    assert diffusion_loss(x0_hat, x0, sigma, kind, factor=factor).item() == pytest.approx(in_x0.item(), rel=1e-9)
    own = {"eps": capped / ratio, "v": capped / (ratio + 1), "flow": capped * sigma.square()}[kind]
    assert torch.allclose(factor, own, rtol=1e-9)
    by_hand = (own * (guess - target).square().flatten(1).mean(1)).mean()
    assert by_hand.item() == pytest.approx(in_x0.item(), rel=1e-9)


LEVELS = {"eps": [0.03, 0.4, 1.0, 14.6], "v": [0.03, 0.4, 1.0, 4518.0], "flow": [0.001, 0.3, 0.5, 1.0]}
"""σ from little noise to the most: that of SD1.5, of a v model with zero terminal SNR, of a flow."""


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_weightings_are_the_papers(kind: str) -> None:
    """Fails if a weighting of the ε, v or flow loss, or of the x0 error, is other than its paper's closed form."""
    sigma = torch.tensor(LEVELS[kind], dtype=torch.float64)
    target, guess, x0, x0_hat = network_error(kind, sigma)
    # Noise and signal of z = a x0 + b ε, and from them the SNR: independent of how the code writes it.
    b = sigma if kind == "flow" else sigma / (1 + sigma.square()).sqrt()
    a = 1 - b if kind == "flow" else (1 - b.square()).sqrt()
    own = (guess - target).square().flatten(1).mean(1)
    in_x0 = (x0_hat - x0).square().flatten(1).mean(1)
    # ε-space closed forms: debiased 1/√SNR, P2 1/(k+SNR)^γ; x0-space: truncated max(SNR, 1).
    forms = {
        "debiased": (debiased_factor(sigma, kind), {"eps": b / a, "v": a * b, "flow": a * b}, a / b),
        "p2": (
            p2_factor(sigma, kind, 0.5, 2.0),
            {name: w / (2 + (a / b) ** 2).sqrt() for name, w in {"eps": a**0, "v": a**2, "flow": a**2}.items()},
            (a / b) ** 2 / (2 + (a / b) ** 2).sqrt(),
        ),
        "truncated": (
            truncated_snr_factor(sigma, kind),
            {"eps": ((b / a) ** 2).clamp(min=1), "v": torch.maximum(a, b) ** 2, "flow": torch.maximum(a, b) ** 2},
            ((a / b) ** 2).clamp(min=1),
        ),
    }
    for name, (factor, closed, weight) in forms.items():
        assert torch.allclose(factor, closed[kind], rtol=1e-6), name
        got = diffusion_loss(x0_hat, x0, sigma, kind, factor=factor).item()
        assert got == pytest.approx((closed[kind] * own).mean().item(), rel=1e-6), name
        assert got == pytest.approx((weight * in_x0).mean().item(), rel=1e-6), name


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_weightings_are_finite_at_every_level(kind: str) -> None:
    """Fails if no noise or nothing but noise gives NaN or infinity in float32, which would end a run."""
    sigma = torch.tensor(LEVELS[kind])
    time = torch.linspace(0, 1, len(sigma))
    for config in (
        TrainingConfig(min_snr_gamma=5),
        TrainingConfig(weighting="debiased"),
        TrainingConfig(weighting="p2"),
        TrainingConfig(weighting="truncated-snr"),
    ):
        factor = loss_factor(sigma, kind, config)
        assert factor is not None and factor.isfinite().all() and (factor >= 0).all()
    assert loss_factor(sigma, kind, TrainingConfig()) is None
    for schedule in ("constant", "exponential", "snr"):
        assert scheduled_huber_c(sigma, time, kind, 0.1, schedule).isfinite().all()


def test_loss_factor_is_the_one_that_was_chosen() -> None:
    """Fails if a configuration's weighting or one of its numbers is mixed up with another."""
    sigma = torch.tensor([0.2, 1.5])
    chosen = {
        "debiased": debiased_factor(sigma, "eps"),
        "truncated-snr": truncated_snr_factor(sigma, "eps"),
        "p2": p2_factor(sigma, "eps", 0.7, 3.0),
    }
    for name, expected in chosen.items():
        got = loss_factor(sigma, "eps", TrainingConfig(weighting=name, p2_gamma=0.7, p2_k=3.0))
        assert got is not None and torch.equal(got, expected)


def test_auto_is_debiased_for_noise_and_gives_way_to_min_snr() -> None:
    """Fails if v and flow models were weighted by it too, or if a chosen min-SNR were refused or ignored."""
    sigma = torch.tensor([0.2, 1.5])
    auto = TrainingConfig(weighting="auto").validate()
    got = loss_factor(sigma, "eps", auto)
    assert got is not None and torch.allclose(got, sigma)  # 1/√SNR
    assert loss_factor(sigma, "v", auto) is None and loss_factor(sigma / 2, "flow", auto) is None
    both = TrainingConfig(weighting="auto", min_snr_gamma=5.0).validate()
    expected = loss_factor(sigma, "eps", TrainingConfig(min_snr_gamma=5.0))
    got = loss_factor(sigma, "eps", both)
    assert got is not None and expected is not None and torch.equal(got, expected)


def test_min_snr_agrees_with_diffusers() -> None:
    """Fails if SNR is not that of the noise schedule that diffusers' training scripts use."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    alphas = scheduler.alphas_cumprod
    times = torch.tensor([0, 200, 700, 999])
    sigma = ((1 - alphas) / alphas).sqrt()[times]
    assert torch.allclose(snr(sigma, "eps"), compute_snr(scheduler, times), rtol=1e-3)


def test_unknown_parameterisation_is_an_error() -> None:
    """Fails if an unknown model kind trains with some weight."""
    with pytest.raises(ValueError, match="'edm'"):
        x0_weight(torch.ones(1), "edm")  # type: ignore[arg-type]


def test_mask_leaves_out_what_it_masks() -> None:
    """Fails if masked errors count, or if the mean is over the whole picture instead of over the mask."""
    x0 = torch.zeros(2, 3, 4, 4)
    x0_hat = torch.zeros_like(x0)
    x0_hat[:, :, :2] = 1.0
    x0_hat[:, :, 2:] = 100.0
    mask = torch.zeros(2, 4, 4)
    mask[:, :2] = 1.0
    mask[1, 1] = 0.0
    assert diffusion_loss(x0_hat, x0, torch.ones(2), "eps", mask=mask).item() == pytest.approx(1.0)
    full = diffusion_loss(x0_hat, x0, torch.ones(2), "eps", mask=torch.ones(2, 4, 4))
    assert full.item() == pytest.approx(diffusion_loss(x0_hat, x0, torch.ones(2), "eps").item())


@given(st.floats(-50, 50), st.floats(0.01, 2))
def test_huber_is_the_pseudo_huber(error: float, c: float) -> None:
    """Fails if the Huber loss differs from 2c(√(e²+c²) − c)."""
    got = diffusion_loss(
        torch.full((1, 1, 1, 1), error, dtype=torch.float64),
        torch.zeros(1, 1, 1, 1, dtype=torch.float64),
        torch.ones(1, dtype=torch.float64),
        "eps",
        huber_c=c,
    )
    assert got.item() == pytest.approx(2 * c * (math.hypot(error, c) - c), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_huber_schedules_are_the_papers(kind: str) -> None:
    """Fails if c(t) differs from exp(-αt) with α = -ln(c)/T, or from (1-c)/(1+σ_ve)² + c, σ_ve = √(1/SNR)."""
    c = 0.05
    sigma = torch.tensor([0.02, 0.3, 0.8], dtype=torch.float64)
    time = torch.tensor([0.0, 250.0, 1000.0], dtype=torch.float64) / 1000
    exponential = scheduled_huber_c(sigma, time, kind, c, "exponential")
    alpha = -math.log(c) / 1000
    assert torch.allclose(exponential, torch.exp(-alpha * time * 1000))
    noise = sigma / (1 - sigma) if kind == "flow" else sigma
    assert torch.allclose(scheduled_huber_c(sigma, time, kind, c, "snr"), (1 - c) / (1 + noise) ** 2 + c)
    assert scheduled_huber_c(sigma, time, kind, c, "constant").tolist() == [c] * 3
    with pytest.raises(ValueError, match="'cubic'"):
        scheduled_huber_c(sigma, time, kind, c, "cubic")


def test_each_picture_has_its_own_c() -> None:
    """Fails if a scheduled c is taken for all pictures of a batch alike, or along another axis."""
    errors = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64).view(3, 1, 1, 1).expand(3, 3, 3, 3)
    c = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    got = diffusion_loss(errors, torch.zeros_like(errors), torch.ones(3, dtype=torch.float64), "eps", huber_c=c).item()
    by_hand = [2 * k * (math.hypot(e, k) - k) for e, k in zip((1.0, 2.0, 3.0), c.tolist(), strict=True)]
    assert got == pytest.approx(sum(by_hand) / 3)
