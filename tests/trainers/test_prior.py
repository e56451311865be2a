"""Prior preservation and prior prediction on the toy, against forward passes made by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import Example, TrainingSet, class_caption
from likeness.trainers.loop import train
from likeness.trainers.lora import injected
from likeness.trainers.prior import PriorBatches
from likeness.trainers.randomness import generator

RUN = TrainingConfig(steps=4, rank=2, alpha=1.0, learning_rate=1e-2, targets="all", batch_size=2, seed=5)
PREFIX = "diffusion_model."


def class_pictures(count: int = 4, size: int = 4) -> tuple[Example, ...]:
    chance = torch.Generator().manual_seed(3)
    return tuple(Example(torch.randn(4, size, size, generator=chance), None, 100.0 + n, None) for n in range(count))


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weighted_error(denoiser: Any, batch: Any) -> float:
    """Mean of (ε̂ − ε)², the noise taken from the model's answer and not from the x₀ loss of the trainers."""
    noisy = batch.latents + batch.sigma.view(-1, 1, 1, 1) * batch.noise
    with torch.no_grad():
        x0 = denoiser.denoise(noisy, batch.sigma, batch.conds)
    predicted_noise = (noisy - x0) / batch.sigma.view(-1, 1, 1, 1)
    return float((predicted_noise - batch.noise).square().mean())


def test_class_pictures_add_lambda_times_their_loss(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if λ is left out, the class loss is of other pictures or noise, or two forward passes are made of one."""
    config = replace(RUN, prior_weight=0.7)
    some = replace(data(1), prior=class_pictures())
    denoiser = toy()
    train(denoiser, some, config, tmp_path)
    assert denoiser.calls == config.steps
    first = logged(tmp_path)[0]
    untrained = toy()
    batch = PriorBatches(some, untrained.sigmas, untrained.device, config).draw(
        0, some.examples[0].latents.shape, generator(config.seed, "prior", 0)
    )
    assert first["prior_loss"] == pytest.approx(weighted_error(untrained, batch), rel=1e-4)
    assert first["loss"] == pytest.approx(first["subject_loss"] + 0.7 * first["prior_loss"], rel=1e-5)
    plain = replace(some, prior=())
    train(toy(), plain, RUN, tmp_path / "plain")
    assert first["subject_loss"] == pytest.approx(logged(tmp_path / "plain")[0]["loss"], rel=1e-5)


def test_what_is_predicted_is_the_base(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the target is not the model without adapters: the first loss would not be 0, a later one would be."""
    some = data(2)
    some = replace(some, examples=tuple(replace(one, prior_cond=9.0) for one in some.examples))
    config = replace(RUN, prior_weight=1.0, learning_rate=0.05)
    denoiser = toy()
    train(denoiser, some, config, tmp_path)
    losses = [line["prior_loss"] for line in logged(tmp_path)]
    assert losses[0] < 1e-9  # with gradients the same pass may round otherwise
    assert all(loss > 1e-6 for loss in losses[1:])
    assert 9.0 in denoiser.seen and 0.0 in {*denoiser.seen}  # the class caption, and the empty one now and then


@pytest.mark.parametrize("drawn", [True, False], ids=["class pictures", "class captions"])
def test_what_is_kept_under_the_empty_caption_is_told_of_its_own_size(data: Any, drawn: bool) -> None:
    """Fails if a class picture, or a training picture under its class caption, gets another one's empty caption."""
    of = {}

    def told(examples: tuple[Example, ...], first: float) -> tuple[Example, ...]:
        made = tuple(replace(one, prior_cond=9.0, empty=first - number) for number, one in enumerate(examples))
        of.update({float(one.latents.sum()): one.empty for one in made})
        return made

    some = data(4)
    some = replace(some, examples=told(some.examples, -10.0), prior=told(class_pictures(), -20.0) if drawn else ())
    config = replace(RUN, prior_weight=1.0, caption_dropout=1.0, batch_size=1)
    batches = PriorBatches(some, torch.ones(3), torch.device("cpu"), config)
    shape = some.examples[0].latents.shape
    found = [batches.draw(number, shape, generator(0, "prior", number)) for number in range(8)]
    assert all(list(batch.conds) == [of[float(batch.latents.sum())]] for batch in found)
    assert len({batch.conds[0] for batch in found}) > 1


def test_adapters_can_be_switched_off(toy: Any) -> None:
    """Fails if switched off they still count, switched on again they do not, or gradients are lost on the way."""
    denoiser = toy()
    x, sigma = torch.randn(2, 4, 4, 4), torch.tensor([0.5, 2.0])
    base = denoiser.denoise(x, sigma, [1.0, 2.0]).detach()
    layers = [PREFIX + "transformer_blocks.0.attn1.to_q", PREFIX + "transformer_blocks.1.conv"]
    with injected({PREFIX: denoiser.module}, layers, rank=2, alpha=1.0, seed=0) as adapters:
        for _, _, up in adapters.factors():
            torch.nn.init.ones_(up)
        taught = denoiser.denoise(x, sigma, [1.0, 2.0])
        with adapters.disabled():
            off = denoiser.denoise(x, sigma, [1.0, 2.0])
        again = denoiser.denoise(x, sigma, [1.0, 2.0])
        assert torch.allclose(off, base, atol=1e-5) and not off.requires_grad
        assert torch.equal(again, taught) and not torch.allclose(taught, base, atol=1e-3)
        again.sum().backward()
        assert all(factor.grad is not None for factor in adapters.parameters())


def test_prediction_keeps_and_class_pictures_do_not_matter_to_it(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a large λ does not hold the model to the base on what is to be kept."""
    some = replace(data(1), prior=class_pictures(8))
    moved = {}
    for weight in (0.0, 30.0):
        denoiser = toy()
        config = replace(RUN, steps=60, rank=4, alpha=4.0, prior_weight=weight, prior_target="prediction")
        result = train(denoiser, some, config, tmp_path / str(weight))
        base = toy()
        x = torch.stack([one.latents for one in some.prior])
        sigma, conds = torch.full((8,), 1.0), [one.cond for one in some.prior]
        noisy = x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            before = base.denoise(noisy, sigma, conds)
            for name, delta in result.deltas.items():
                layer = base.module.get_submodule(name.removeprefix(PREFIX))
                layer.weight += delta.dense().reshape(layer.weight.shape)
            moved[weight] = float((base.denoise(noisy, sigma, conds) - before).square().mean())
    assert moved[30.0] < 0.2 * moved[0.0]


def test_other_sizes_get_a_pass_of_their_own(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if class pictures of another size cannot be used, or those of the same size are not preferred."""
    sizes: TrainingSet = replace(data(2), prior=class_pictures(3, size=8))
    denoiser = toy()
    config = replace(RUN, prior_weight=1.0)
    train(denoiser, sizes, config, tmp_path)
    assert denoiser.calls == 2 * config.steps
    mixed = replace(data(1), prior=class_pictures(3, size=8) + class_pictures(2))
    batches = PriorBatches(mixed, denoiser.sigmas, denoiser.device, config)
    for number in range(6):
        assert batches.draw(number, torch.Size([4, 4, 4]), generator(1)).latents.shape == (2, 4, 4, 4)


@pytest.mark.parametrize("target", ["picture", "prediction"])
def test_resume_is_bit_for_bit(target: str, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if what is kept is drawn by anything but seed and step."""
    some = replace(data(3, flip=True), prior=class_pictures())
    config = replace(RUN, steps=5, prior_weight=1.0, prior_target=target, dropout=0.1, checkpoint_every=2, keep_last=0)
    whole = train(toy(), some, config, tmp_path / "a")
    resumed = train(toy(), some, config, tmp_path / "b", resume_from=tmp_path / "a" / "checkpoints" / "step-000002")
    for name, delta in whole.deltas.items():
        assert torch.equal(delta.up, resumed.deltas[name].up) and torch.equal(delta.down, resumed.deltas[name].down)
    assert whole.losses == resumed.losses


def test_nothing_to_keep_is_an_error(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a run that is to keep something trains without keeping anything."""
    with pytest.raises(ValueError, match=r"nothing to keep.*class pictures or prior prompts"):
        train(toy(), data(), replace(RUN, prior_weight=1.0), tmp_path)
    bad = replace(data(1), prior=(Example(torch.full((4, 4, 4), torch.nan), None, 1.0, None),))
    with pytest.raises(ValueError, match="Class pictures: Latents of example 1 hold NaN"):
        train(toy(), bad, replace(RUN, prior_weight=1.0), tmp_path)


@pytest.mark.parametrize(
    ("caption", "trigger", "noun", "expected"),
    [
        ("a picture of sks dog on grass", "sks", "dog", "a picture of dog on grass"),
        ("a flat picture of a sks", "sks", "creature", "a flat picture of a creature"),
        ("a flat picture of a sks", "sks", "", "a flat picture of a"),
        ("SKS and asks", "sks", "cat", "cat and asks"),
        ("my old toy here", "old toy", "bear", "my bear here"),
        ("a picture of a dog", "sks", "dog", None),
        ("a picture", "", "dog", None),
    ],
)
def test_class_caption(caption: str, trigger: str, noun: str, expected: str | None) -> None:
    """Fails if the noun is doubled, a part of a word is taken for the trigger, or a caption without it is used."""
    assert class_caption(caption, trigger, noun) == expected
