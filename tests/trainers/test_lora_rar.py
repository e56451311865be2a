"""Teaching a hypernetwork: its gradients, that it learns, held-out pairs, and that a resumed run is an unbroken one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from likeness.lora.delta import LowRankDelta
from likeness.merging.lora_rar import HyperNetwork
from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import TrainingSet
from likeness.trainers.lora_rar import RarTrained, Taught, train_rar
from likeness.trainers.outcome import Callbacks
from likeness.trainers.zip_state import load_state, save_state

LAYERS = [f"diffusion_model.transformer_blocks.{n}.attn1.{k}" for n in (0, 1) for k in ("to_q", "to_k")]
CONFIG = TrainingConfig(steps=5, learning_rate=0.01, seed=5)


def taught(seed: int, data: Callable[..., TrainingSet], columns: slice = slice(None)) -> Taught:
    """A LoRA that reads some of the columns only."""
    chance = torch.Generator().manual_seed(seed)
    layers = {}
    for name in LAYERS:
        down = torch.zeros(2, 4)
        down[:, columns] = torch.randn(2, 4, generator=chance)[:, columns]
        layers[name] = LowRankDelta(torch.randn(4, 2, generator=chance), down, 0.5, "linear")
    return Taught(f"lora {seed}", lambda: layers, data(3))


def library(data: Any) -> tuple[list[Taught], list[Taught]]:
    return [taught(seed, data) for seed in range(3)], [taught(seed, data) for seed in range(10, 12)]


def run(toy: Any, data: Any, config: TrainingConfig = CONFIG, **more: Any) -> tuple[RarTrained, HyperNetwork]:
    network = HyperNetwork((4,)).begin(config.seed)
    held = [(taught(7, data), taught(17, data))]
    return train_rar(toy(), network, lambda name: True, library(data), held, config, 0.01, **more), network


def test_gradients_by_finite_differences(toy: Any, data: Any) -> None:
    """One step of plain SGD with a rate of 1 moves each number by minus its gradient, which is measured here by moving
    the number. Fails where a question or the cosine does not reach the network, or counts twice."""
    pair = [taught(1, data)], [taught(2, data)]
    config = TrainingConfig(steps=1, learning_rate=1e-3, seed=5, optimizer="sgd", max_grad_norm=0.0)

    def network() -> HyperNetwork:
        made = HyperNetwork((4,)).begin(1).double()
        with torch.no_grad():
            made.out.weight.normal_(generator=torch.Generator().manual_seed(3)).mul_(0.1)
        return made

    def loss(name: str, place: tuple[int, ...], change: float) -> float:
        made = network()
        with torch.no_grad():
            made.state_dict()[name][place] += change
        return train_rar(toy(dtype=torch.float64), made, lambda name: True, pair, [], config, 0.01).records[0]["loss"]

    before, after = network(), network()
    train_rar(toy(dtype=torch.float64), after, lambda name: True, pair, [], config, 0.01)
    for name, place in (("out.weight", (0, 3)), ("out.bias", (1,)), ("heads.4.weight", (5, 6)), ("heads.4.bias", (9,))):
        moved = (before.state_dict()[name][place] - after.state_dict()[name][place]) / config.learning_rate
        expected = (loss(name, place, 1e-3) - loss(name, place, -1e-3)) / 2e-3
        assert float(moved) == pytest.approx(expected, rel=0.05, abs=2e-4), name


def test_it_learns_what_holds_for_new_pairs(toy: Any, data: Any) -> None:
    """Held-out LoRAs come nearer to themselves than in the plain sum, through coefficients that nobody learnt for them.
    Fails where the network is not taught, or pairs get other pairs' coefficients."""
    found, _ = run(toy, data, dataclasses.replace(CONFIG, steps=60, batch_size=2))
    (pair,) = found.fits.values()
    assert sum(fit.merged / fit.base for fit in pair) < 0.9 * sum(fit.plain / fit.base for fit in pair)
    assert {(record["subject"], record["style"]) for record in found.records} == {
        (a, b) for a in range(3) for b in (0, 1)
    }


def numbers(network: HyperNetwork) -> list[Tensor]:
    return list(network.state_dict().values())


def test_resumed_is_unbroken(toy: Any, data: Any, tmp_path: Path) -> None:
    """Cancelled after two steps and gone on: to the bit the same network."""
    asked = iter([False, False, True])
    part, _ = run(toy, data, callbacks=Callbacks(cancelled=lambda: next(asked)))
    assert part.steps_done == 2
    save_state(tmp_path / "state.safetensors", part.state, {})
    resumed, one = run(toy, data, start=load_state(tmp_path / "state.safetensors", {}))
    torch.manual_seed(3)
    whole, other = run(toy, data)
    assert resumed.records == whole.records and resumed.fits == whole.fits
    assert all(torch.equal(a, b) for a, b in zip(numbers(one), numbers(other), strict=True))


def test_refusals(toy: Any, data: Any) -> None:
    """Nothing to learn from, and layers of a width that the network has no head for."""
    subjects, styles = library(data)
    network = HyperNetwork((8,)).begin(0)
    with pytest.raises(ValueError, match="no style"):
        train_rar(toy(), network, lambda name: True, (subjects, []), [], CONFIG)
    with pytest.raises(ValueError, match="knows no layer"):
        train_rar(toy(), network, lambda name: True, (subjects, styles), [], CONFIG)
