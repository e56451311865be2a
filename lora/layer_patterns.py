"""Rules about layers in a small text: a line begins with a regular expression, the first that matches decides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar


class Ruled(Protocol):
    """A line of such a text; ``pattern`` is searched in canonical layer names."""

    @property
    def pattern(self) -> str: ...


R = TypeVar("R", bound=Ruled)


def rule_lines(text: str, name: str) -> Iterator[tuple[int, str, list[str]]]:
    """(number from 1, "line <number> of <name>", words) of each line; the first word is a regular expression.

    Empty lines, and those that begin with ``#``, say nothing.

    Raises:
        ValueError: a first word is no regular expression; names the line.
    """
    for number, line in enumerate(text.splitlines(), 1):
        words, where = line.split(), f"line {number} of {name}"
        if not words or words[0].startswith("#"):
            continue
        try:
            re.compile(words[0])
        except re.error as why:
            raise ValueError(f"{where}: {words[0]!r} is no regular expression: {why}") from why
        yield number, where, words


def first_match(name: str, rules: Sequence[R]) -> R | None:
    """The rule that decides a layer, or None."""
    return next((rule for rule in rules if re.search(rule.pattern, name)), None)
