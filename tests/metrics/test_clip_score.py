"""CLIP-T against sums in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from likeness.metrics.clip_score import (
    class_prompt,
    clip_score,
    clip_score_of,
    clip_t,
    clip_t_all_pairs,
    prompt_cosines,
)


def rows(seed: int, count: int, width: int = 5) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(one: Tensor, other: Tensor) -> float:
    a, b = one.tolist(), other.tolist()
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_pairs_by_hand(seed: int, count: int, prompts: int) -> None:
    """Fails where matched pairs are mixed up, all pairs leave some out, a negative cosine scores, or 2.5 is missing."""
    pictures, texts, other = rows(seed, count), 3 * rows(seed + 1, count), rows(seed + 2, prompts)
    matched = [cosine(one, text) for one, text in zip(pictures, texts, strict=True)]
    assert prompt_cosines(pictures, texts).tolist() == pytest.approx(matched)
    assert clip_t(pictures, texts) == pytest.approx(sum(matched) / count)
    assert clip_score(pictures, texts) == pytest.approx(sum(2.5 * max(value, 0) for value in matched) / count)
    everything = [cosine(one, text) for one in pictures for text in other]
    assert clip_t_all_pairs(pictures, other) == pytest.approx(sum(everything) / len(everything))


@given(st.integers(0, 10**6), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_one_prompt_for_all_is_that_prompt_repeated(seed: int, count: int) -> None:
    """Fails where one prompt is compared with the first picture only."""
    pictures, text = rows(seed, count), rows(seed + 1, 1)
    repeated = prompt_cosines(pictures, text.expand(count, -1))
    torch.testing.assert_close(prompt_cosines(pictures, text), repeated)


def test_the_mode_of_hessel_is_never_negative() -> None:
    """Fails where the clamp comes after the mean, or the range is not [0, 2.5]."""
    assert clip_score_of(torch.tensor([1.0, 0.2, -0.5])).tolist() == pytest.approx([2.5, 0.5, 0.0])


def test_what_does_not_fit_is_refused() -> None:
    """Fails where prompts are cut off or repeated to fit, or models of two widths are compared."""
    with pytest.raises(ValueError, match="3 pictures and 2 prompts"):
        prompt_cosines(rows(0, 3), rows(1, 2))
    with pytest.raises(ValueError, match="the same network"):
        prompt_cosines(rows(0, 3), rows(1, 3, 7))
    with pytest.raises(ValueError, match="unknown"):
        prompt_cosines(rows(0, 3), rows(1, 3), "some")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("prompt", "token", "noun", "want"),
    [
        ("a sks dog in the snow", "sks", "dog", "a dog in the snow"),
        ("a photo of sks", "sks", "teddy bear", "a photo of teddy bear"),
        ("SKS on a sksophone", "sks", "cat", "cat on a sksophone"),
        ("a sks on desks", "sks", "cat", "a cat on desks"),
        ("sks and sks cats", "sks", "cat", "cat and cat cats"),
        ("<new1> toy, a <new1>", "<new1>", "toy", "toy, a toy"),
        ("a dog", "", "", "a dog"),
        (r"a sks", "sks", r"\1", r"a \1"),
    ],
)
def test_the_class_noun_stands_for_the_token(prompt: str, token: str, noun: str, want: str) -> None:
    """Fails where a part of a word is replaced, the noun is doubled, or characters are taken for a pattern."""
    assert class_prompt(prompt, token, noun) == want


def test_a_token_without_a_noun_is_refused() -> None:
    """Fails where CLIP is asked about a word that it does not know."""
    with pytest.raises(ValueError, match="no class noun"):
        class_prompt("a sks", "sks", " ")
