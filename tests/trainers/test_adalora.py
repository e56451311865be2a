from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from likeness.trainers.adalora import AFTER, AdaLora, AllocatedRanks
from likeness.trainers.adapters import Method
from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.lora import injected
from likeness.trainers.outcome import TrainingResult
from likeness.trainers.targets import PREFIX

RUN = TrainingConfig(
    algorithm="adalora", steps=10, rank=3, alpha=4.0, target_rank=2, learning_rate=1e-2, targets="all", batch_size=2
)
LAYERS = {"linear": lambda: nn.Linear(12, 20), "conv": lambda: nn.Conv2d(6, 10, 3, padding=1)}
INPUTS = {"linear": (3, 5, 12), "conv": (2, 6, 5, 5)}


def as_bytes(result: TrainingResult) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in result.tensors.items()}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_live_layer_is_the_exported_delta(kind: str) -> None:
    """Fails if E, its sign or peft's scale is left out of the file, or a component of E = 0 is in it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.ModuleDict({"layer": LAYERS[kind]()})
    chance = torch.Generator().manual_seed(2)
    x = torch.randn(INPUTS[kind], generator=chance)
    with injected(
        {PREFIX: module}, [f"{PREFIX}layer"], rank=4, alpha=6.0, seed=0, method=Method("adalora")
    ) as adapters:
        (layer,) = adapters.of_kind(AdaLora).values()
        plain = module["layer"](x)
        with adapters.disabled():
            assert torch.allclose(plain, module["layer"](x))
        assert float(adapters.norm()) == 0 and adapters.deltas()[f"{PREFIX}layer"].rank == 1  # a file wants one
        for parameter in layer.parameters().values():
            parameter.data += torch.randn(parameter.shape, generator=chance)
        layer.parameters()["lora_E"].data[2] = 0
        layer.parameters()["lora_E"].data[1] = -0.7
        live = module["layer"](x).detach()
        peft = layer.layer.get_delta_weight("likeness").detach().flatten(1)
        delta = adapters.deltas()[f"{PREFIX}layer"]
        assert delta.rank == delta.alpha == 3
        assert torch.allclose(delta.dense().flatten(1), peft, atol=1e-5)
        base = layer.base
    with torch.no_grad():
        base.weight += delta.dense()
        assert torch.allclose(base(x), live, atol=1e-4)
    assert module["layer"] is base


@pytest.mark.parametrize("steps", [1, 2, 10, 40])
def test_the_budget_is_kept(steps: int, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the choice is never final, a step late, of another size, or the file has what was cut."""
    result = train(toy(), data(), dataclasses.replace(RUN, steps=steps), tmp_path)
    ranks = [layer.rank for layer in result.ranks.values()]
    assert sum(ranks) == 2 * len(ranks)
    means = [record["mean_rank"] for record in result.records]
    last = steps - int(AFTER * steps)
    assert means[last - 1 :] == [2.0] * (steps - last + 1) and means == sorted(means, reverse=True)
    if steps == 40:
        assert len({*ranks}) > 1 and means[3] == 3.0 and means[4] < 3.0
        assert {name: delta.rank for name, delta in result.deltas.items()} == {
            name: max(1, layer.rank) for name, layer in result.ranks.items()
        }


@pytest.mark.parametrize("after", [4, 6, 8])
def test_resume_is_bit_for_bit(after: int, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if importance, choice or a masked component is not as in an unbroken run: before and after the cut."""
    config = dataclasses.replace(RUN, checkpoint_every=2, keep_last=0, dropout=0.1, gradient_accumulation=2)
    whole = train(toy(), data(), config, tmp_path / "whole")
    place = tmp_path / "whole" / "checkpoints" / f"step-{after:06d}"
    resumed = train(toy(), data(), config, tmp_path / "two", resume_from=place)
    assert as_bytes(whole) == as_bytes(resumed) and whole.losses == resumed.losses and whole.ranks == resumed.ranks
    one, two = (tmp_path / name / "checkpoints" / "step-000010" for name in ("whole", "two"))
    for path in one.iterdir():
        assert path.read_bytes() == (two / path.name).read_bytes(), path.name


def test_same_seed_same_bytes(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a factor comes from the global generator."""
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(train(toy(), data(), RUN, tmp_path / str(seed)))
    assert as_bytes(results[0]) == as_bytes(results[1])


def test_the_orthogonality_is_that_of_all_factors() -> None:
    """Fails if the term is of one factor, or of another norm: against eq. 4 written out, and 0 for orthonormal ones."""
    module = nn.ModuleDict({"layer": nn.Linear(5, 6)})
    with injected(
        {PREFIX: module}, [f"{PREFIX}layer"], rank=3, alpha=3.0, seed=0, method=Method("adalora")
    ) as adapters:
        ranks = AllocatedRanks(adapters, RUN)
        a, _, b = (parameter.detach() for parameter in adapters.parameters())
        expected = sum(float(((m @ m.T - torch.eye(3)) ** 2).sum().sqrt()) for m in (a.double().float(), b.T))
        penalty = ranks.penalty()
        assert penalty is not None and penalty.item() == pytest.approx(0.5 * expected / 2, rel=1e-5)
        a.copy_(torch.eye(3, 5))
        b.copy_(torch.eye(6, 3))
        penalty = ranks.penalty()
        assert penalty is not None and penalty.item() == 0


def test_what_does_not_go_together_is_refused(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a run begins whose budget cannot fall, or whose rules peft would not follow."""
    with pytest.raises(ValueError, match="it begins with more"):
        dataclasses.replace(RUN, target_rank=3).validate()
    with pytest.raises(ValueError, match="ema_decay"):
        dataclasses.replace(RUN, ema_decay=0.9).validate()
    rules = dataclasses.replace(RUN, layer_rules="to_q rank=5")
    with pytest.raises(ValueError, match="one rank in all layers"):
        train(toy(), data(), rules, tmp_path)
