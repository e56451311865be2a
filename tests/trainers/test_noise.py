from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.trainers.batches import Batches
from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import Example, TrainingSet
from likeness.trainers.loop import train
from likeness.trainers.noise import perturbed_target, pyramid_noise
from likeness.trainers.objectives import diffusion_loss


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 8), st.floats(0, 0.9), st.integers(0, 2**32))
def test_pyramid_noise_has_unit_variance_at_each_pixel(h: int, w: int, levels: int, discount: float, seed: int) -> None:
    """Fails if a level's interpolation or the sum is not normalised: the model would see more noise than σ says."""
    chance = torch.Generator().manual_seed(seed)
    noise = pyramid_noise(torch.randn(4000, 1, h, w, generator=chance), chance, levels, discount)
    assert noise.shape == (4000, 1, h, w)
    # A variance of 4000 draws has a standard deviation of √(2/4000) = .022; 81 pixels, 6 of them.
    assert ((noise.var(0) - 1).abs() < 6 * math.sqrt(2 / 4000)).all()
    assert (noise.mean(0).abs() < 6 / math.sqrt(4000)).all()


def test_pyramid_noise_adds_low_frequencies() -> None:
    """Fails if coarser levels do not make neighbours alike as the weights say: 2×2 in two levels has a closed form."""
    chance = torch.Generator().manual_seed(0)
    d = 0.5
    noise = pyramid_noise(torch.randn(60_000, 1, 2, 2, generator=chance), chance, 5, d)[:, 0]
    # Level 1 is one pixel for all four, and the last: the covariance of neighbours is d², the variance 1 + d².
    covariance = (noise[:, 0, 0] * noise[:, 1, 1]).mean().item()
    assert covariance == pytest.approx(d**2 / (1 + d**2), abs=0.02)
    plain = torch.randn(2, 3, 8, 8)
    assert torch.equal(pyramid_noise(plain, chance, 3, 0.0), plain)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_input_perturbation_leaves_the_target(kind: str) -> None:
    """Fails if the loss is not the plain one of a network that saw x(n + γξ) against the target made of n alone."""
    chance = torch.Generator().manual_seed(4)
    x0, noise, xi, guess = (torch.randn(3, 2, 4, 4, generator=chance, dtype=torch.float64) for _ in range(4))
    sigma = torch.tensor([0.05, 0.5, 1.0] if kind == "flow" else [0.05, 1.0, 9.0], dtype=torch.float64)
    s, gamma = sigma.view(-1, 1, 1, 1), 0.3
    if kind == "flow":
        seen, target = (1 - s) * x0 + s * (noise + gamma * xi), noise - x0
        x0_hat = seen - s * guess
    else:
        seen = x0 + s * (noise + gamma * xi)
        alpha, sigma_vp = 1 / (1 + s**2).sqrt(), s / (1 + s**2).sqrt()
        target = noise if kind == "eps" else alpha * noise - sigma_vp * x0
        x0_hat = seen - s * guess if kind == "eps" else alpha**2 * seen - sigma_vp * guess
    usual = (guess - target).square().mean().item()
    meant = perturbed_target(x0, sigma, kind, gamma, xi)
    assert diffusion_loss(x0_hat, meant, sigma, kind).item() == pytest.approx(usual, rel=1e-9)
    assert torch.equal(perturbed_target(x0, sigma, kind, 0.0, xi), x0)


def examples(count: int = 3, size: int = 8) -> TrainingSet:
    chance = torch.Generator().manual_seed(1)
    return TrainingSet(
        tuple(Example(torch.randn(2, size, size, generator=chance), None, float(n), None) for n in range(count)), -1.0
    )


def batches(data: TrainingSet, kind: Any = "eps", **fields: Any) -> Batches:
    config = TrainingConfig(**{"batch_size": 4, "seed": 3, **fields}).validate()
    sigmas = torch.arange(1, 101) / 100 if kind == "flow" else torch.logspace(-1.5, 1.1, 100)
    return Batches(data, sigmas, torch.device("cpu"), config, kind)


@pytest.mark.parametrize(
    ("option", "changed"),
    [
        ({"pyramid_levels": 3}, {"noise"}),
        ({"input_perturbation": 0.1}, {"noise", "target"}),
        ({"weighting": "debiased"}, {"factor"}),
        ({"loss": "huber", "huber_schedule": "snr"}, {"huber_c"}),
        ({"timestep_sampling": "cosmap"}, {"sigma"}),
        ({"timestep_shifting": "static"}, {"sigma"}),
    ],
    ids=lambda value: "-".join(value),
)
@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_an_option_changes_what_it_names_alone(option: dict[str, Any], changed: set[str], kind: Any) -> None:
    """Fails if turning an option on draws something else anew: runs could not be compared any more."""

    def drawn(**fields: Any) -> Any:
        return batches(examples(), kind, **fields).draw(5, torch.Generator().manual_seed(9))

    plain, other = drawn(), drawn(**option)
    for name in ("latents", "noise", "sigma", "target", "factor", "huber_c"):
        one, two = getattr(plain, name), getattr(other, name)
        same = one is two if one is None or two is None else torch.equal(one, two)
        assert same == (name not in changed), name
    assert list(plain.conds) == list(other.conds)


def test_perturbation_is_of_the_input_alone() -> None:
    """Fails if what the target leaves out is not what the noise got: γ ξ."""
    plain = batches(examples()).draw(0, torch.Generator().manual_seed(9))
    other = batches(examples(), input_perturbation=0.2).draw(0, torch.Generator().manual_seed(9))
    xi = (other.noise - plain.noise) / 0.2
    assert xi.std().item() == pytest.approx(1, abs=0.1)
    assert torch.allclose(other.target - other.latents, 0.2 * plain.sigma.view(-1, 1, 1, 1) * xi, atol=1e-5)


def test_resolution_shift_goes_by_the_latents() -> None:
    """Fails if larger pictures do not get more noise, or the patch is not counted."""

    def level(size: int, patch: int) -> float:
        config = TrainingConfig(batch_size=1, timestep_shifting="resolution")
        data = examples(1, size)
        made = Batches(data, torch.arange(1, 1001) / 1000, torch.device("cpu"), config, "flow", patch)
        return made.draw(0, torch.Generator().manual_seed(1)).sigma.item()

    assert level(128, 2) == level(64, 1) > level(32, 2)
    u = torch.rand(2, generator=torch.Generator().manual_seed(1))  # flips and drops come before
    del u
    own = level(32, 2)  # 256 tokens: c = e^.5
    plain = own / (math.exp(0.5) - (math.exp(0.5) - 1) * own)
    assert level(128, 2) == pytest.approx(math.exp(1.15) * plain / (1 + (math.exp(1.15) - 1) * plain), rel=1e-4)


def test_unmasked_weight_is_a_floor() -> None:
    """Fails if the background counts as nothing, or a picture without a mask counts less than whole."""
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    data = examples(2)
    data = TrainingSet((dataclasses.replace(data.examples[0], mask=mask), data.examples[1]), -1.0)
    drawn = batches(data, unmasked_weight=0.25).draw(0, torch.Generator().manual_seed(0))
    assert drawn.mask is not None
    for cond, got in zip(drawn.conds, drawn.mask, strict=True):
        expected = torch.where(mask > 0, 1.0, 0.25) if cond == 0.0 else torch.ones(8, 8)
        assert torch.equal(got, expected)
    assert mask.min() == 0  # the caller's is not written to


def test_variants_are_all_seen_and_decided_by_the_seed() -> None:
    """Fails if a variant is never drawn, a picture gets another's, or two runs of one seed differ."""
    data = examples(2)
    varied = tuple(
        dataclasses.replace(example, variants=tuple(10 * number + k for k in range(4)))
        for number, example in enumerate(data.examples, 1)
    )
    made = batches(TrainingSet(varied, -1.0), caption_dropout=0.2)

    def seen() -> list[Any]:
        return [cond for n in range(60) for cond in made.draw(n, torch.Generator().manual_seed(n)).conds]

    found = seen()
    assert set(found) == {-1.0, 10, 11, 12, 13, 20, 21, 22, 23}
    counts = [found.count(cond) for cond in (10, 11, 12, 13, 20, 21, 22, 23)]
    assert max(counts) < 3 * min(counts)
    assert found == seen()
    other = batches(TrainingSet(varied, -1.0), seed=4)
    assert [other.draw(n, torch.Generator().manual_seed(n)).conds for n in range(9)] != [
        made.draw(n, torch.Generator().manual_seed(n)).conds for n in range(9)
    ]


def test_a_dropped_caption_is_told_of_its_own_picture() -> None:
    """Fails if a picture gets the empty caption made for another one's size, or one without its own gets none."""
    data = examples(3)
    told = [dataclasses.replace(one, empty=-10.0 - number) for number, one in enumerate(data.examples[:2])]
    made = batches(TrainingSet((*told, data.examples[2]), -1.0), caption_dropout=1.0, batch_size=1)
    of = {float(one.latents.sum()): empty for one, empty in zip(data.examples, (-10.0, -11.0, -1.0), strict=True)}
    for number in range(6):
        batch = made.draw(number, torch.Generator().manual_seed(number))
        assert list(batch.conds) == [of[float(batch.latents.sum())]]


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_a_run_with_everything_resumes_bit_for_bit(kind: str, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if an option draws from what was drawn before the checkpoint."""
    config = TrainingConfig(
        steps=6,
        rank=2,
        alpha=1.0,
        learning_rate=1e-3,
        targets="all",
        batch_size=2,
        gradient_accumulation=2,
        checkpoint_every=3,
        keep_last=0,
        loss="huber",
        huber_schedule="exponential",
        weighting="p2",
        timestep_sampling="mode",
        timestep_shifting="resolution",
        pyramid_levels=4,
        input_perturbation=0.1,
        noise_offset=0.05,
        unmasked_weight=0.1,
    )
    training = data(masked=True)
    training = TrainingSet(
        tuple(dataclasses.replace(example, variants=(example.cond, 9.0)) for example in training.examples), 0.0
    )
    whole = train(toy(kind), training, config, tmp_path / "whole")
    start = tmp_path / "whole" / "checkpoints" / "step-000003"
    resumed = train(toy(kind), training, config, tmp_path / "two", resume_from=start)
    assert whole.losses == resumed.losses
    for name, delta in whole.deltas.items():
        assert torch.equal(delta.up, resumed.deltas[name].up) and torch.equal(delta.down, resumed.deltas[name].down)
