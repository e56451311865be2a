"""240 checkpoints that were damaged or forged: each is refused by name, or goes on as the honest one would."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from likeness.trainers import checkpoints
from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.outcome import TrainingDiverged

RUN = TrainingConfig(steps=3, rank=2, alpha=1.0, learning_rate=1e-2, targets="all", batch_size=2, seed=5)
Damage = Callable[[random.Random, Path], None]
DAMAGES: dict[str, Damage] = {}


def damage(function: Damage) -> Damage:
    DAMAGES[function.__name__.replace("_", " ")] = function
    return function


def state_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return found


def tensors_in(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return dict(safetensors.torch.load((folder / name).read_bytes()))


def put(folder: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
    (folder / name).write_bytes(safetensors.torch.save(tensors))


def one_of(chance: random.Random) -> str:
    return chance.choice(("lora.safetensors", "optimizer.safetensors"))


@damage
def a_file_truncated(chance: random.Random, folder: Path) -> None:
    path = folder / chance.choice(("lora.safetensors", "optimizer.safetensors", "state.json"))
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


@damage
def bytes_changed(chance: random.Random, folder: Path) -> None:
    path = folder / chance.choice(("lora.safetensors", "optimizer.safetensors", "state.json"))
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 30)):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content)


@damage
def a_file_missing(chance: random.Random, folder: Path) -> None:
    path = folder / chance.choice(("lora.safetensors", "optimizer.safetensors", "state.json"))
    path.unlink()
    if chance.random() < 0.3:
        path.mkdir()


@damage
def state_of_another_shape(chance: random.Random, folder: Path) -> None:
    state = state_of(folder)
    key = chance.choice(list(state))
    state[key] = chance.choice((None, "x", [], {}, -1, 10**30, 1.5, True, [None], {"a": 1}, "../../x"))
    (folder / "state.json").write_text(json.dumps(state))


@damage
def losses_that_are_none(chance: random.Random, folder: Path) -> None:
    state = state_of(folder)
    state["losses"] = chance.choice(([], [1.0], [1.0] * 9, ["a", "b"], [None, None], [float("nan"), "x"], "ab"))
    (folder / "state.json").write_text(json.dumps(state))


@damage
def a_configuration_of_another_shape(chance: random.Random, folder: Path) -> None:
    state = state_of(folder)
    key = chance.choice(("steps", "rank", "alpha", "targets", "optimizer", "seed", "learning_rate", "new"))
    state["config"][key] = chance.choice((None, "x", [], {}, -1, 10**30, "../../x", 1.5))
    (folder / "state.json").write_text(json.dumps(state))


@damage
def json_too_deep(chance: random.Random, folder: Path) -> None:
    (folder / "state.json").write_text(chance.choice(("[", '{"a":')) * 100_000)


@damage
def not_a_number(chance: random.Random, folder: Path) -> None:
    name = one_of(chance)
    tensors = tensors_in(folder, name)
    key = chance.choice([key for key, tensor in tensors.items() if tensor.is_floating_point()])
    tensors[key] = torch.full_like(tensors[key], chance.choice((float("nan"), float("inf"))))
    put(folder, name, tensors)


@damage
def a_tensor_of_another_shape(chance: random.Random, folder: Path) -> None:
    name = one_of(chance)
    tensors = tensors_in(folder, name)
    key = chance.choice([key for key in tensors if not key.endswith(".alpha")])
    shape = list(tensors[key].shape)
    tensors[key] = torch.ones(
        chance.choice(([1000], [], [0], [*shape, 2], [*shape[::-1], 1], [n + 1 for n in shape], [1, 1]))
    )
    put(folder, name, tensors)


@damage
def a_tensor_missing_or_too_many(chance: random.Random, folder: Path) -> None:
    name = one_of(chance)
    tensors = tensors_in(folder, name)
    key = chance.choice([key for key in tensors if not key.endswith(".alpha")])
    moved = tensors.pop(key)
    if chance.random() < 0.5:
        tensors[chance.choice(("x", "99.exp_avg", "group7.d", "group0.params", "group0.lr", "1e9.step", "../../x"))] = (
            moved
        )
    put(folder, name, tensors)


@damage
def a_pickle_instead(chance: random.Random, folder: Path) -> None:
    torch.save({"x": torch.ones(2)}, folder / one_of(chance))


@damage
def honest(chance: random.Random, folder: Path) -> None:
    """Nothing is wrong with it."""


@pytest.mark.parametrize(("optimizer", "each"), [("adamw", 16), ("sgd", 4)])
def test_every_damage_is_refused_by_name_or_harmless(
    optimizer: str, each: int, toy: Any, data: Any, judge: Any, tmp_path: Path
) -> None:
    """Fails at a crash, another error than ours, or a run that goes on from something that is no number."""
    config = TrainingConfig(**{**RUN.__dict__, "optimizer": optimizer})
    whole = train(toy(), data(), config, tmp_path / "whole")
    train(toy(), data(), TrainingConfig(**{**config.__dict__, "steps": 2}), tmp_path / "two")
    good = checkpoints.checkpoints_in(tmp_path / "two")[-1]
    for kind, hurt in DAMAGES.items():
        chance = random.Random(kind)
        for number in range(each):
            run = tmp_path / f"{kind}-{number}"
            bad = checkpoints.place(run, 2)
            shutil.copytree(good, bad)
            hurt(chance, bad)

            def resume(bad: Path = bad, run: Path = run) -> Any:
                try:
                    return train(toy(), data(), config, run, resume_from=bad)
                except TrainingDiverged as why:
                    raise ValueError(str(why)) from why

            result = judge.read(kind, "", resume)
            if result is not None:
                assert all(delta.dense().isfinite().all() for delta in result.deltas.values())
            if kind == "honest":
                for name, delta in whole.deltas.items():
                    assert torch.equal(delta.dense(), result.deltas[name].dense())
            shutil.rmtree(run)
    assert judge.accepted["honest"] == each
    never = ("a file missing", "json too deep", "losses that are none", "a pickle instead", "not a number")
    assert not any(judge.accepted[kind] for kind in never), judge.accepted
    assert judge.total == each * len(DAMAGES)


def test_what_a_killed_run_leaves_is_swept_away(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if half checkpoints are taken for whole ones, or lie about for ever."""
    train(toy(), data(), RUN, tmp_path)
    folder = tmp_path / "checkpoints"
    whole = folder / "step-000003"
    for name in (".step-000009.partial", ".step-000001.old"):
        shutil.copytree(whole, folder / name)
    shutil.copytree(whole, folder / "step-000007")
    (folder / "step-000007" / "state.json").unlink()
    assert checkpoints.checkpoints_in(tmp_path) == [whole]
    train(toy(), data(), TrainingConfig(**{**RUN.__dict__, "steps": 4}), tmp_path, resume_from=tmp_path)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    assert checkpoints.checkpoints_in(tmp_path)[-1].name == "step-000004"
