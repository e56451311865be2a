"""Ranks, alphas and learning rates of single layers, by regular expression."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..lora.layer_patterns import first_match, rule_lines

_KEYS = ("rank", "alpha", "lr")


@dataclass(frozen=True)
class LayerRule:
    """One line of the rules.

    Attributes:
        line: its number in the text, from 1.
        pattern: regular expression, searched in canonical layer names.
        rank: of the layers it matches; 0 leaves them out; None: as everywhere else.
        alpha: None: so that alpha/rank is what it is everywhere else.
        rate: factor of the learning rate.
    """

    line: int
    pattern: str
    rank: int | None = None
    alpha: float | None = None
    rate: float = 1.0


@dataclass(frozen=True)
class LayerPlan:
    """What one layer gets: rank, alpha, and the factor of its learning rate."""

    rank: int
    alpha: float
    rate: float = 1.0


def parse_rules(text: str) -> tuple[LayerRule, ...]:
    r"""Rules out of a text with one a line, such as ``attn2\.to_[kv]$ rank=4 alpha=4 lr=0.5``.

    Empty lines, and those that begin with ``#``, say nothing.

    Raises:
        ValueError: names the line, what is wrong with it and what is expected.
    """
    return tuple(_parse(*line) for line in rule_lines(text, "layer_rules"))


def _parse(number: int, where: str, words: Sequence[str]) -> LayerRule:
    values: dict[str, float] = {}
    for word in words[1:]:
        key, _, value = word.partition("=")
        if key not in _KEYS or key in values:
            raise ValueError(f"{where}: {word!r} is not understood; expected rank=…, alpha=… and lr=…, each once")
        try:
            values[key] = int(value) if key == "rank" else float(value)
        except ValueError:
            raise ValueError(f"{where}: {word!r} is no {'whole ' if key == 'rank' else ''}number") from None
        least = 0 if key == "rank" else 1e-9
        if not (math.isfinite(values[key]) and values[key] >= least):
            raise ValueError(f"{where}: {word!r} must be {'0 or more' if key == 'rank' else 'above 0'}")
    if not values:
        raise ValueError(f"{where}: {words[0]!r} says nothing; expected at least one of rank=…, alpha=…, lr=…")
    rank = int(values["rank"]) if "rank" in values else None
    return LayerRule(number, words[0], rank, values.get("alpha"), values.get("lr", 1.0))


def plan_layers(layers: Sequence[str], rules: Sequence[LayerRule], rank: int, alpha: float) -> dict[str, LayerPlan]:
    """What each layer gets; the first rule that matches a layer decides. Those of rank 0 are left out.

    Raises:
        ValueError: a rule matches none of the layers, or all layers are left out.
    """
    used: set[int] = set()
    plans: dict[str, LayerPlan] = {}
    for name in layers:
        rule = first_match(name, rules)
        if rule is None:
            plans[name] = LayerPlan(rank, alpha)
            continue
        used.add(rule.line)
        theirs = rank if rule.rank is None else rule.rank
        if theirs:
            plans[name] = LayerPlan(theirs, alpha * theirs / rank if rule.alpha is None else rule.alpha, rule.rate)
    if idle := [rule for rule in rules if rule.line not in used]:
        raise ValueError(
            f"line {idle[0].line} of layer_rules: {idle[0].pattern!r} decides none of the {len(layers)} layers that "
            f"are targeted (an earlier line may match them first). One of them is {layers[0]}."
        )
    if not plans:
        raise ValueError("layer_rules leave all layers out (rank=0): nothing would learn. Remove a rule.")
    return plans
