from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from likeness.trainers import optimizers
from likeness.trainers.config import OPTIMIZERS, TrainingConfig
from likeness.trainers.lion import Lion
from likeness.trainers.loop import train

PACKAGES = {"adamw-8bit": "bitsandbytes", "prodigy": "prodigyopt", "schedule-free": "schedulefree"}
RUN = TrainingConfig(steps=9, rank=2, alpha=1.0, learning_rate=1e-2, targets="all", seed=5, checkpoint_every=4)


def there(optimizer: str) -> None:
    if optimizer in PACKAGES:
        pytest.importorskip(PACKAGES[optimizer], reason=f"the optimizer {optimizer} is NOT TESTED")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_descends_and_resumes_bit_for_bit(optimizer: str) -> None:
    """Fails if a state (moments, Prodigy's d, schedule-free's z and weights, 8-bit tables) is lost, cast or rounded."""
    there(optimizer)
    rate = 1.0 if optimizer == "prodigy" else 3e-2

    def made() -> tuple[list[nn.Parameter], Any]:
        # 80 × 64: bitsandbytes keeps what is below 4096 numbers in 32 bits
        start = torch.ones(80, 64), torch.full((3,), -1.0)
        parameters = [nn.Parameter(tensor.clone()) for tensor in start]
        rates = [1.0, 1.0] if optimizer == "prodigy" else [1.0, 0.5]
        return parameters, optimizers.build(optimizer, parameters, rate, 0.01, rates)

    def loss(parameters: list[nn.Parameter]) -> torch.Tensor:
        return sum(((p - 0.3) ** 2 * torch.linspace(0.5, 2, p.numel()).view(p.shape)).mean() for p in parameters)

    def steps(parameters: list[nn.Parameter], optimizer: Any, first: int, last: int) -> None:
        for step in range(first, last):
            optimizer.zero_grad(set_to_none=True)
            loss(parameters).backward()
            optimizers.set_rate(optimizer, rate * (1 + step % 3) / 3 if rate < 1 else rate)
            optimizer.step()

    parameters, whole = made()
    before = float(loss(parameters))
    steps(parameters, whole, 0, 5)
    saved = optimizers.state_tensors(whole)
    assert all(not tensor.is_sparse and tensor.device.type == "cpu" for tensor in saved.values())
    at_five = [parameter.detach().clone() for parameter in parameters]
    steps(parameters, whole, 5, 12)
    assert float(loss(parameters)) < before

    others, resumed = made()
    with torch.no_grad():
        for parameter, value in zip(others, at_five, strict=True):
            parameter.copy_(value)
    optimizers.load_state_tensors(resumed, saved)
    steps(others, resumed, 5, 12)
    assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    one, two = optimizers.state_tensors(whole), optimizers.state_tensors(resumed)
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_lion_is_the_papers() -> None:
    """Fails if the update is not alg. 2 of the paper, worked out by hand in double precision."""
    theta, momentum = [0.5, -2.0], [0.0, 0.0]
    parameter = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
    optimizer = Lion([parameter], lr=0.1, betas=(0.9, 0.99), weight_decay=0.2)
    for gradient in ([1.0, -3.0], [-0.05, 4.0], [-6.0, 0.0]):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        for i in range(2):
            c = 0.9 * momentum[i] + 0.1 * gradient[i]
            sign = (c > 0) - (c < 0)
            theta[i] -= 0.1 * (sign + 0.2 * theta[i])
            momentum[i] = 0.99 * momentum[i] + 0.01 * gradient[i]
        assert parameter.tolist() == pytest.approx(theta, rel=1e-12)


def test_adafactor_moves_zeros_by_the_rate() -> None:
    """Fails if the rate is multiplied with the size of the parameter: LoRA's up begins as zeros."""
    parameter = nn.Parameter(torch.zeros(8, 4))
    optimizer = optimizers.build("adafactor", [parameter], 1e-2, 0.0)
    parameter.grad = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert 1e-3 < float(parameter.detach().abs().max()) < 1e-1


def test_averaged_shows_x_and_puts_y_back() -> None:
    """Fails if schedule-free's average is not what samples and the result see, or training goes on rounded."""
    there("schedule-free")
    parameter = nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = optimizers.build("schedule-free", [parameter], 0.1, 0.0)
    for _ in range(4):
        parameter.grad = parameter.detach().sin()
        optimizer.step()
    y, z = parameter.detach().clone(), optimizer.state[parameter]["z"].clone()
    with optimizers.averaged(optimizer):
        assert torch.allclose(0.1 * z + 0.9 * parameter.detach(), y, atol=1e-6)
        assert not torch.equal(parameter, y)
    assert torch.equal(parameter, y) and optimizer.param_groups[0]["train_mode"]


@pytest.mark.parametrize(("rate", "rates"), [(1e-4, [1.0]), (1.0, [0.5])])
def test_prodigy_is_told_no_rate(rate: float, rates: list[float]) -> None:
    """Fails if Prodigy's own rate is multiplied with a rate that is meant for AdamW, and nothing is learnt."""
    with pytest.raises(ValueError, match="Set learning_rate to 1"):
        optimizers.build("prodigy", [nn.Parameter(torch.zeros(2))], rate, 0.0, rates)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a user is not told what to install."""
    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)
    with pytest.raises(ValueError, match="pip install prodigyopt"):
        optimizers.build("prodigy", [nn.Parameter(torch.zeros(2))], 1.0, 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "prodigy", "learning_rate": 1.0},
        {"optimizer": "schedule-free"},
        {"optimizer": "lion"},
        {"algorithm": "dora", "rank_stabilised": True, "dropout": 0.2},
        {"algorithm": "loha"},
        {"algorithm": "lokr"},
        {"algorithm": "oft"},
        {"init": "pissa"},
        {"init": "olora"},
        {"layer_rules": "attn1 rank=3 lr=0.1\nconv$ rank=0"},
    ],
    ids=lambda changes: ", ".join(f"{value}" for value in changes.values()),
)
def test_a_run_resumes_bit_for_bit(changes: dict[str, Any], toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a checkpoint of some optimizer, algorithm or init does not hold all that training goes on from."""
    there(str(changes.get("optimizer")))
    config = dataclasses.replace(RUN, steps=5, checkpoint_every=2, keep_last=0, **changes)
    whole = train(toy(), data(2), config, tmp_path / "whole")
    at_two = tmp_path / "whole" / "checkpoints" / "step-000002"
    resumed = train(toy(), data(2), config, tmp_path / "two", resume_from=at_two)
    assert whole.losses == resumed.losses
    assert whole.tensors.keys() == resumed.tensors.keys()
    assert all(torch.equal(whole.tensors[name], resumed.tensors[name]) for name in whole.tensors)
    one, two = (tmp_path / name / "checkpoints" / "step-000005" for name in ("whole", "two"))
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names)
