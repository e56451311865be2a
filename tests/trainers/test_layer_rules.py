from __future__ import annotations

import dataclasses

import pytest

from likeness.trainers.config import TrainingConfig
from likeness.trainers.layer_rules import LayerPlan, LayerRule, parse_rules, plan_layers

TEXT = r"""
# what reads the prompt
attn2\.to_[kv]$ rank=4 alpha=2 lr=0.5

attn1 rank=0
ff lr=2
"""


def test_a_line_a_rule() -> None:
    """Fails if a value is lost, or a comment or an empty line shifts the numbers of lines."""
    assert parse_rules(TEXT) == (
        LayerRule(3, r"attn2\.to_[kv]$", 4, 2.0, 0.5),
        LayerRule(5, "attn1", 0, None, 1.0),
        LayerRule(6, "ff", None, None, 2.0),
    )
    assert parse_rules("") == ()


def test_the_first_match_wins_and_the_rest_is_as_everywhere() -> None:
    """Fails if a later rule overrides, rank 0 does not leave out, or a rank alone changes the scale alpha/rank."""
    layers = ["b.attn1.to_k", "b.attn2.to_k", "b.attn2.to_q", "b.ff.0"]
    rules = parse_rules("to_k$ rank=2\nattn2 rank=0\nff rank=32 alpha=1 lr=0.1")
    assert plan_layers(layers, rules, 8, 4.0) == {
        "b.attn1.to_k": LayerPlan(2, 1.0),
        "b.attn2.to_k": LayerPlan(2, 1.0),
        "b.ff.0": LayerPlan(32, 1.0, 0.1),
    }
    assert plan_layers(layers, (), 8, 4.0) == dict.fromkeys(layers, LayerPlan(8, 4.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a lr=1\n( rank=4", "line 2 .*no regular expression"),
        ("attn", "line 1 .*says nothing"),
        ("attn rank=4 rank=5", "line 1 .*'rank=5' is not understood"),
        ("attn rang=4", "line 1 .*'rang=4' is not understood"),
        ("attn rank=4.5", "line 1 .*no whole number"),
        ("attn rank=-1", "line 1 .*0 or more"),
        ("attn lr=nan", "line 1 .*above 0"),
        ("attn alpha=0", "line 1 .*above 0"),
    ],
)
def test_errors_name_the_line(text: str, message: str) -> None:
    """Fails if a mistyped rule is taken for something, or the configuration does not look at it."""
    with pytest.raises(ValueError, match=message):
        parse_rules(text)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TrainingConfig(), layer_rules=text).validate()


def test_rules_without_effect_are_errors() -> None:
    """Fails if a rule that decides nothing, or that leaves nothing, passes in silence."""
    with pytest.raises(ValueError, match=r"line 2 .*decides none of the 1 layers"):
        plan_layers(["b.attn1"], parse_rules("attn lr=2\nattn1 rank=4"), 8, 8.0)
    with pytest.raises(ValueError, match="leave all layers out"):
        plan_layers(["b.attn1"], parse_rules("attn rank=0"), 8, 8.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "locon"}, "algorithm is 'locon'"),
        ({"algorithm": "loha", "dropout": 0.1}, "no dropout"),
        ({"algorithm": "oft", "init": "pissa"}, "an init and a scale of its own"),
        ({"algorithm": "dora", "init": "olora"}, "choose init"),
        ({"lokr_factor": 1}, "lokr_factor is 1"),
        ({"optimizer": "prodigy", "learning_rate": 1.0, "layer_rules": "a lr=2"}, "one rate for all layers"),
        ({"optimizer": "schedule-free", "schedule": "cosine"}, "choose schedule 'constant'"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, object], message: str) -> None:
    """Fails if a combination that would be trained otherwise than it says passes."""
    with pytest.raises(ValueError, match=message):
        TrainingConfig.from_mapping(changes)
