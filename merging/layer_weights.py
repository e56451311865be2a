"""Weights of single layers, by regular expression, in a small text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..lora.layer_patterns import first_match, rule_lines


@dataclass(frozen=True)
class LayerWeights:
    """One line of the text.

    Attributes:
        line: its number in the text, from 1.
        pattern: regular expression, searched in canonical layer names.
        factors: of the LoRAs' weights in those layers; one for all of them, or one for each.
    """

    line: int
    pattern: str
    factors: tuple[float, ...]


def parse_layer_weights(text: str) -> tuple[LayerWeights, ...]:
    r"""Rules out of a text with one a line: a regular expression, then one number, or one for each LoRA.

    ``input_blocks\.[1-4]\. 0.5`` halves every LoRA's weight there, ``attn2 1 0 -0.3`` is of three LoRAs; 0 leaves a
    LoRA out of those layers. Empty lines, and those that begin with ``#``, say nothing. The first rule that finds a
    layer's name decides.

    Raises:
        ValueError: names the line, what is wrong with it and what is expected.
    """
    return tuple(_parse(*line) for line in rule_lines(text, "the layer weights"))


def _parse(number: int, where: str, words: Sequence[str]) -> LayerWeights:
    if len(words) < 2:
        raise ValueError(f"{where}: {words[0]!r} has no number; expected one weight, or one for each LoRA")
    factors = []
    for word in words[1:]:
        try:
            factors.append(float(word))
        except ValueError:
            raise ValueError(f"{where}: {word!r} is no number; expected a regular expression and weights") from None
        if not math.isfinite(factors[-1]):
            raise ValueError(f"{where}: {word!r} is no weight; expected a finite number")
    return LayerWeights(number, words[0], tuple(factors))


def weights_in(layer: str, weights: Sequence[float], rules: Sequence[LayerWeights]) -> tuple[float, ...]:
    """The LoRAs' weights in one layer: each times its factor of the first rule that finds the layer's name.

    Raises ValueError where that rule has neither one number nor one for each LoRA.
    """
    rule = first_match(layer, rules)
    if rule is None:
        return tuple(weights)
    if len(rule.factors) not in (1, len(weights)):
        raise ValueError(
            f"line {rule.line} of the layer weights has {len(rule.factors)} numbers for {len(weights)} LoRAs; expected "
            "one for all, or one for each"
        )
    factors = rule.factors if len(rule.factors) == len(weights) else rule.factors * len(weights)
    return tuple(weight * factor for weight, factor in zip(weights, factors, strict=True))
