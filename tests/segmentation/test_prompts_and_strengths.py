"""The token in the class noun's place; strengths by range."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.segmentation.prompts import with_token
from likeness.segmentation.strengths import Range, first_steps, read_ranges


@pytest.mark.parametrize(
    ("prompt", "noun", "token", "expected"),
    [
        ("a photo of a dog on a bench", "dog", "sks dog", "a photo of a sks dog on a bench"),
        ("Dog, hotdogs and a dog-house; DOG", "dog", "sks", "sks, hotdogs and a sks-house; sks"),
        ("a sks on a bench", "dog", "sks", "a sks on a bench"),
        ("a hot dog", "hot dog", r"\1 food", r"a \1 food"),
        ("anything", "", "sks", "anything"),
    ],
)
def test_whole_words_become_the_token(prompt: str, noun: str, token: str, expected: str) -> None:
    """Fails if parts of words are replaced, the case counts, or the token is read as a pattern."""
    assert with_token(prompt, noun, token) == expected


def test_a_prompt_without_the_subject_is_told() -> None:
    """Fails if it is painted all the same."""
    with pytest.raises(ValueError, match="neither the class noun 'dog' nor the token 'sks'"):
        with_token("a photo of a cat", "dog", "sks")


def test_ranges_are_filled_up() -> None:
    """Fails if gaps keep the strength before them, or ranges stay in the order of writing."""
    assert read_ranges("") == ()
    assert read_ranges("0.5-0.8: 0.2, 0-0.3: -1") == (
        Range(0, 0.3, -1),
        Range(0.3, 0.5, 1),
        Range(0.5, 0.8, 0.2),
        Range(0.8, 1, 1),
    )


@pytest.mark.parametrize("text", ["half: 1", "0.5-0.2: 1", "0-2: 1", "0-0.5: 1, 0.4-1: 0", "0-1", "0-1: .", "-1-1: 1"])
def test_what_is_no_range_is_told(text: str) -> None:
    """Fails if a typing error becomes strength 1 in silence."""
    with pytest.raises(ValueError, match=r"no range|overlap"):
        read_ranges(text)


@given(st.lists(st.integers(1, 99), max_size=4, unique=True), st.integers(1, 50))
@settings(max_examples=40, deadline=None)
def test_every_step_has_the_strength_of_its_share(cuts: list[int], steps: int) -> None:
    """Oracle: for each step, the range that its share of the sampling lies in. Fails by one step at a border."""
    ends = [0, *sorted(cuts), 100]
    given_ = [f"{low / 100}-{high / 100}: {i / 10}" for i, (low, high) in enumerate(pairwise(ends))]
    ranges = read_ranges(", ".join(given_))
    begun = first_steps(ranges, steps)
    for step in range(steps):
        strength = [value for first, value in begun if first <= step][-1]
        inside = [r.strength for r in ranges if round(r.start * steps) <= step < round(r.end * steps)]
        assert strength == inside[-1]
