"""How alike a word's pictures are, and which word is chosen."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.metrics.pairs import ssim_per_pair
from likeness.trainers import token_prior
from likeness.trainers.token_prior import (
    WordPrior,
    choose,
    feature_variance,
    pairwise_ssim,
    prior_json,
    prior_table,
    word_prior,
)


def direct_ssim(one: np.ndarray, other: np.ndarray) -> float:
    """Wang et al. 2004, eq. 13, pixel by pixel: (C, H, W) twice, edges mirrored."""
    steps = np.arange(-5, 6)
    line = np.exp(-(steps**2) / (2 * 1.5**2))
    weights = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    values = []
    for a, b in zip(one.astype(np.float64), other.astype(np.float64), strict=True):
        a, b = np.pad(a, 5, mode="reflect"), np.pad(b, 5, mode="reflect")
        for y in range(a.shape[0] - 10):
            for x in range(a.shape[1] - 10):
                p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                both = (weights * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


def pictures(count: int, seed: int, size: int = 16, alike: float = 0.0) -> torch.Tensor:
    """(N, 3, size, size); ``alike`` is the share of a picture that all have in common."""
    chance = torch.Generator().manual_seed(seed)
    own = torch.rand(count, 3, size, size, generator=chance)
    return alike * torch.rand(1, 3, size, size, generator=chance) + (1 - alike) * own


def test_a_words_ssim_is_the_formula() -> None:
    """Oracle: the definition in numpy, over all pairs. Fails with another window, σ, constants or range, or
    another mean than that over pairs."""
    one, two = pictures(2, 0, 11)
    three = 0.7 * one + 0.3 * two
    expected = [direct_ssim(a.numpy(), b.numpy()) for a, b in combinations((one, two, three), 2)]
    got = word_prior("x", torch.stack([one, two, three]), ssim_per_pair)
    assert got.pairs == pytest.approx(expected, abs=1e-6) and got.ssim == pytest.approx(np.mean(expected))
    assert abs(expected[0]) < 0.2 < expected[1] < 0.9 and got.variance is None


def test_every_pair_is_compared_once_in_the_order_of_combinations() -> None:
    """Oracle: a measure that names its pair. Fails if a pair is missed, doubled or compared with itself, or a chunk is
    lost."""
    numbered = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 16, 16)

    def measure(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return 10 * a[:, 0, 0, 0] + b[:, 0, 0, 0]

    for together in (1, 2, 99):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(token_prior, "PIXELS", together * 256)
            assert pairwise_ssim(numbered, measure) == tuple(10.0 * i + j for i, j in combinations(range(5), 2))
    assert word_prior("x", numbered, measure).ssim == pytest.approx(np.mean([1, 2, 3, 4, 12, 13, 14, 23, 24, 34]))
    with pytest.raises(ValueError, match="at least 2"):
        pairwise_ssim(numbered[:1], measure)


@given(st.integers(2, 8), st.integers(2, 6), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_feature_variance_is_the_total_variance_of_unit_rows(count: int, width: int, seed: int) -> None:
    """Oracles: numpy's variance with N − 1, and 1 less the mean cosine of all pairs. Fails if rows keep their length,
    or a picture is paired with itself."""
    rows = np.random.default_rng(seed).normal(size=(count, width)) * 7
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    got = feature_variance(torch.tensor(rows))
    assert got == pytest.approx(unit.var(axis=0, ddof=1).sum())
    assert got == pytest.approx(1 - np.mean([unit[i] @ unit[j] for i, j in combinations(range(count), 2)]))


def prior(word: str, pairs: list[float], variance: float | None = None) -> WordPrior:
    return WordPrior(word, float(np.mean(pairs)), tuple(pairs), variance)


def test_the_lowest_ssim_is_chosen_and_ties_go_to_the_more_varied_features() -> None:
    """Fails if the order is reversed, if variance outweighs a difference in SSIM, or if a tie goes the other way."""
    strong, weak = prior("dog", [0.8] * 6, 0.9), prior("xq", [0.2] * 6, 0.1)
    twin = prior("zz", [0.2 + 1e-6] * 6, 0.3)
    assert choose([strong, weak]).word == "xq"
    found = choose([strong, weak, twin])
    assert [each.word for each in found.ranked] == ["zz", "xq", "dog"] and found.same == ("xq",)
    assert choose([prior("a", [0.2] * 6), prior("b", [0.2] * 6)]).word == "a"
    with pytest.raises(ValueError, match="as many pictures"):
        choose([strong, prior("y", [0.1])])


@given(st.integers(3, 7), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_noise_is_the_jackknife_over_seeds(count: int, seed: int) -> None:
    """Oracle: pseudo-values, whose spread over √n is the standard error (Tukey 1958). Fails if pairs are left out
    instead of seeds, or a factor is wrong."""
    chance = np.random.default_rng(seed)
    pairs = list(combinations(range(count), 2))
    one, other = chance.random(len(pairs)), chance.random(len(pairs)) + 1
    found = choose([prior("one", list(one)), prior("other", list(other))])
    difference = other - one
    left_out = [np.mean([d for d, pair in zip(difference, pairs, strict=True) if s not in pair]) for s in range(count)]
    pseudo = count * difference.mean() - (count - 1) * np.array(left_out)
    # For a mean over pairs, the mean of the pseudo-values need not be the mean itself; the spread is about their own.
    assert found.noise["other"] == pytest.approx(pseudo.std(ddof=1) / np.sqrt(count))
    assert found.noise["one"] == 0


def test_equal_words_raise_a_warning_and_unequal_ones_do_not() -> None:
    """On drawn noise. Fails if the warning never or always comes, or two pictures pass for enough."""
    alike = [word_prior(name, pictures(5, seed), ssim_per_pair) for name, seed in (("a", 1), ("b", 2), ("c", 3))]
    found = choose(alike)
    assert "equal within noise" in found.warning and len(found.same) == 2
    known = word_prior("dog", pictures(5, 4, alike=0.8), ssim_per_pair)
    found = choose([known, *alike])
    assert found.warning == "" and "dog" not in found.same and found.ranked[-1].word == "dog"
    assert known.ssim > 0.5 > found.ranked[0].ssim
    two = [
        word_prior(name, pictures(2, seed, alike=share), ssim_per_pair)
        for name, seed, share in (("a", 1, 0.0), ("b", 2, 0.9))
    ]
    assert "noise is unknown" in choose(two).warning
    assert "one word only" in choose(alike[:1]).warning
    same = word_prior("same", pictures(5, 1), ssim_per_pair)
    assert choose([alike[0], same]).same == ("same",)


def test_table_and_json_say_what_was_chosen_and_how_sure_that_is() -> None:
    """Fails if columns slip, the warning is dropped, or JSON has another order."""

    def features(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1)

    priors = [word_prior(name, pictures(4, seed), ssim_per_pair, features) for name, seed in (("a|b", 1), ("c", 5))]
    found = choose(priors)
    table = prior_table(found, "Seeds 0 to 3.")
    assert "**Careful:**" in table and "a\\|b" in table and "within noise" in table and "Seeds 0 to 3." in table
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1 and "feature variance" in rows[0]
    assert f"| {found.ranked[0].ssim:.4f} |" in rows[-2]
    read = json.loads(prior_json(found, {"seeds": [0, 1, 2, 3]}))
    assert read["chosen"] == found.word == read["words"][0]["word"] and read["seeds"] == [0, 1, 2, 3]
    assert read["words"][1]["pairs"] == list(found.ranked[1].pairs)
