from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.trainers.objectives import diffusion_loss, draw_sigmas, min_snr_factor, snr, x0_weight


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
    assert diffusion_loss(x0_hat, x0, sigma, kind, min_snr_gamma=gamma).item() == pytest.approx(in_x0.item(), rel=1e-9)
    own = {"eps": capped / ratio, "v": capped / (ratio + 1), "flow": capped * sigma.square()}[kind]
    assert torch.allclose(min_snr_factor(sigma, kind, gamma), own, rtol=1e-9)
    by_hand = (own * (guess - target).square().flatten(1).mean(1)).mean()
    assert by_hand.item() == pytest.approx(in_x0.item(), rel=1e-9)


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


CDF = {
    "uniform": lambda u: u,
    "logit-normal": lambda u: 0.5 * (1 + torch.erf((torch.logit(u) - 0.5) / (0.8 * math.sqrt(2)))),
    "sigmoid": lambda u: 0.5 * (1 + torch.erf(torch.logit(u) / (0.8 * math.sqrt(2)))),
    # u = c v/(1+(c-1)v), so v = u/(c-(c-1)u)
    "shift": lambda u: 0.5 * (1 + torch.erf(torch.logit(u / (3 - 2 * u)) / (0.8 * math.sqrt(2)))),
}


@pytest.mark.parametrize("sampling", sorted(CDF))
def test_sigmas_follow_the_distribution(sampling: str) -> None:
    """Fails if quantiles are not distributed as named (Kolmogorov-Smirnov against the closed form)."""
    sigmas = torch.arange(1, 1001) / 1000
    count = 20_000
    drawn = draw_sigmas(sigmas, count, torch.Generator().manual_seed(1), sampling, 0.5, 0.8, 3.0).double().sort().values
    expected = CDF[sampling](drawn.clamp(1e-4, 1 - 1e-4))
    # 1.95/√n is the 0.1% bound; ties are 1/1000 wide.
    distance = (expected - torch.arange(1, count + 1) / count).abs().max().item()
    assert distance < 1.95 / math.sqrt(count) + 2e-3


@settings(max_examples=30)
@given(st.integers(1, 7), st.integers(0, 2**63 - 1), st.sampled_from(sorted(CDF)))
def test_sigmas_are_trained_ones(count: int, seed: int, sampling: str) -> None:
    """Fails if a σ is drawn that the model never saw."""
    sigmas = torch.tensor([0.1, 0.5, 3.0])
    drawn = draw_sigmas(sigmas, count, torch.Generator().manual_seed(seed), sampling, std=3.0)
    assert drawn.shape == (count,)
    assert set(drawn.tolist()) <= set(sigmas.tolist())
