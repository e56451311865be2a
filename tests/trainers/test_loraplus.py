"""LoRA+: B's learning rate is a ratio times A's (Hayou et al. 2024, arXiv 2402.12354)."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from likeness.lora.suffixes import DOWN, UP
from likeness.trainers import optimizers
from likeness.trainers.adapters import Method
from likeness.trainers.checkpoints import load
from likeness.trainers.config import TrainingConfig
from likeness.trainers.layer_rules import parse_rules
from likeness.trainers.loop import train
from likeness.trainers.lora import injected
from likeness.trainers.outcome import TrainingResult

RATIO = 4.0
RATE = 1e-3
RUN = TrainingConfig(
    steps=1, rank=2, alpha=2.0, learning_rate=RATE, weight_decay=0.0, max_grad_norm=0.0, targets="all", seed=5
)


def numbers(result: TrainingResult, suffix: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in result.tensors.items() if name.endswith(suffix)}


def test_adamws_first_step_of_b_is_the_ratio_times_that_of_a(toy: Any, data: Any, tmp_path: Path) -> None:
    """Adam's first step is lr · g/(|g| + ε), ±lr: fails if B's rate is not the ratio times A's, or A's is another.

    PiSSA, because A has no gradient while B is 0. Its file holds what the factors began as, in the second half.
    """
    result = train(toy(), data(), replace(RUN, init="pissa", loraplus_ratio=RATIO), tmp_path / "run")
    for suffix, dim, sign, rate in ((DOWN, 0, -1, RATE), (UP, 1, 1, RATIO * RATE)):
        halves = [tensor.chunk(2, dim) for tensor in numbers(result, suffix).values()]
        moved = torch.cat([(now + sign * before).flatten() for now, before in halves]).abs()
        assert float(moved.median()) == pytest.approx(rate, rel=1e-3)
        assert float(moved.max()) < 1.01 * rate


def test_sgds_first_step_of_b_is_the_ratio_times_what_it_was(toy: Any, data: Any, tmp_path: Path) -> None:
    """B = −ratio · lr · g, and A stays where its gradient is 0: fails if the ratio acts on A, twice or not at all."""
    one, four = (
        train(toy(), data(), replace(RUN, optimizer="sgd", loraplus_ratio=ratio), tmp_path / f"{ratio}")
        for ratio in (1.0, RATIO)
    )
    assert all(bool(tensor.any()) for tensor in numbers(one, UP).values())
    for name, tensor in one.tensors.items():
        assert torch.equal(four.tensors[name], tensor * RATIO if name.endswith(UP) else tensor)


def test_it_multiplies_with_the_rates_of_layers_and_text_encoders(toy: Any) -> None:
    """Fails if a rule's lr= or the text encoders' rate is lost beside the ratio; DoRA's magnitude has A's rate."""
    module = toy().module
    layers = [f"m.transformer_blocks.0.{name}" for name in ("attn1.to_q", "ff.0")]
    for method, expected in (
        (Method("lora", loraplus_ratio=RATIO), [0.25, 1.0, 0.5, 2.0]),
        (Method("dora", loraplus_ratio=RATIO), [0.25, 1.0, 0.25, 0.5, 2.0, 0.5]),
        (Method("lora"), [0.25, 0.25, 0.5, 0.5]),
    ):
        rules = parse_rules("to_q lr=0.5")
        with injected(
            {"m.": module}, layers, rank=2, alpha=2.0, seed=0, method=method, rules=rules, rates={"m.": 0.5}
        ) as adapters:
            assert adapters.rates() == expected


def test_a_ratio_of_1_is_one_group_of_one_rate(toy: Any) -> None:
    """Fails if runs as they were before would get other groups, which optimizers and checkpoints count by."""
    with injected({"": toy().module}, ["transformer_blocks.0.ff.0"], rank=2, alpha=2.0, seed=0) as adapters:
        groups = optimizers.build("adamw", adapters.parameters(), RATE, 0.0, adapters.rates()).param_groups
        assert [len(group["params"]) for group in groups] == [2]


@pytest.mark.parametrize("changes", [{}, {"algorithm": "dora"}, {"algorithm": "adaptive"}, {"ema_decay": 0.9}])
@pytest.mark.parametrize("optimizer", ["adamw", "lion"])
def test_a_run_is_resumed_to_the_bit(
    changes: dict[str, Any], optimizer: str, toy: Any, data: Any, tmp_path: Path
) -> None:
    """Fails if the state of two groups comes back in another order, or the schedule forgets B's factor."""
    config = replace(
        RUN, steps=7, schedule="cosine", checkpoint_every=3, keep_last=0, optimizer=optimizer, loraplus_ratio=RATIO
    )
    config = replace(config, **changes)
    whole = train(toy(), data(), config, tmp_path / "whole")
    at = tmp_path / "whole" / "checkpoints" / "step-000003"
    two = train(toy(), data(), config, tmp_path / "two", resume_from=at)
    assert whole.losses == two.losses
    assert whole.tensors.keys() == two.tensors.keys()
    assert all(torch.equal(tensor, two.tensors[name]) for name, tensor in whole.tensors.items())
    plain = train(toy(), data(), replace(config, loraplus_ratio=1.0), tmp_path / "plain")
    assert not all(torch.equal(tensor, whole.tensors[name]) for name, tensor in numbers(plain, UP).items())


def test_it_is_kept_with_the_run_and_asked_of_who_resumes(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if config.json forgets it, or a run goes on with another ratio, whose groups the state does not fit.

    A checkpoint from before there was a ratio does not name it: it is 1.
    """
    config = replace(RUN, steps=3, loraplus_ratio=RATIO)
    run = train(toy(), data(), config, tmp_path / "run").folder
    assert TrainingConfig.from_json((run / "config.json").read_text()).loraplus_ratio == RATIO
    with pytest.raises(ValueError, match=r"loraplus_ratio is 1\.0, the checkpoint's is 4\.0"):
        train(toy(), data(), replace(config, steps=5, loraplus_ratio=1.0), tmp_path / "on", resume_from=run)
    old = train(toy(), data(), replace(RUN, steps=3), tmp_path / "old").folder / "checkpoints" / "step-000003"
    state = json.loads((old / "state.json").read_text())
    del state["config"]["loraplus_ratio"]
    (old / "state.json").write_text(json.dumps(state))
    assert load(old).config == replace(RUN, steps=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "loha"}, r"loraplus_ratio is 4 and algorithm 'loha'.* no A and B"),
        ({"algorithm": "lokr"}, "no A and B"),
        ({"algorithm": "oft"}, "no A and B"),
        ({"algorithm": "adalora"}, "no A and B"),
        ({"optimizer": "prodigy", "learning_rate": 1.0}, "one rate for A and B"),
        ({"loraplus_ratio": 0.0}, r"loraplus_ratio is 0\.0; it must be above 0"),
        ({"loraplus_ratio": float("nan")}, "loraplus_ratio is nan"),
    ],
)
def test_where_there_is_nothing_to_raise(changes: dict[str, Any], message: str) -> None:
    """Fails if a ratio is taken that does nothing, or something else than it says."""
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_mapping({**asdict(RUN), "loraplus_ratio": RATIO, **changes})
