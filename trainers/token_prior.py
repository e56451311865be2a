"""Does the model draw the same thing for a word whatever the noise? Then it has a prior for it.

From the paper (Image-Alchemy, 3.1): several pictures a word with different seeds, compared by eye and by SSIM; the
tokens of the most varied pictures are taken. It states no number of seeds, no prompt and no threshold.

Ours: the same seeds for every word; the mean SSIM of every two of a word's pictures, in RGB, window 11 and σ 1.5; the
word where that is lowest is chosen; the spread of the pictures in a network's features, where one is given; and the
jackknife over seeds, which tells differences from chance.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..lora.markdown import markdown_table

SSIM = Callable[[Tensor, Tensor], Tensor]
"""(B, 3, H, W) and (B, 3, H, W) in [0, 1] -> (B,): ``metrics.pairs.ssim_per_pair``, or another likeness of pictures."""

Features = Callable[[Tensor], Tensor]
"""(B, 3, H, W) in [0, 1] -> (B, D)."""

PIXELS = 1 << 21
"""Pixels of the pictures that are compared at once."""

TIE = 5e-5
"""SSIM that differs by less looks equal in the table, and counts as equal."""


@dataclass(frozen=True)
class WordPrior:
    """What a word's pictures say.

    Attributes:
        word: as in the prompt.
        ssim: mean over all pairs of its pictures; low: varied pictures, a weak prior.
        pairs: SSIM of each pair of seeds, in the order of ``itertools.combinations``.
        variance: of the pictures' features, or None: see :func:`feature_variance`.
    """

    word: str
    ssim: float
    pairs: tuple[float, ...]
    variance: float | None = None


@dataclass(frozen=True)
class Choice:
    """Which word, and how sure.

    Attributes:
        ranked: weakest prior first; the first is the chosen word.
        noise: of each word, the standard error of its mean SSIM less the chosen word's; None where unknown.
        same: words whose SSIM is within two standard errors of the chosen word's.
        warning: what to know before trusting the choice, or "".
    """

    ranked: tuple[WordPrior, ...]
    noise: Mapping[str, float | None]
    same: tuple[str, ...]
    warning: str

    @property
    def word(self) -> str:
        """The chosen one."""
        return self.ranked[0].word


def pairwise_ssim(pictures: Tensor, measure: SSIM) -> tuple[float, ...]:
    """SSIM of every two of the pictures (N, 3, H, W) in [0, 1], in the order of ``itertools.combinations``.

    Raises:
        ValueError: fewer than two pictures.
    """
    count = len(pictures)
    if count < 2:
        raise ValueError(f"{count} picture says nothing of variety; expected at least 2 of each word")
    together = max(1, PIXELS // (pictures.shape[-2] * pictures.shape[-1]))
    values: list[float] = []
    for i in range(count - 1):
        for later in torch.split(pictures[i + 1 :], together):
            values += measure(pictures[i : i + 1].expand_as(later), later).double().cpu().tolist()
    return tuple(values)


def feature_variance(features: Tensor) -> float:
    """1 − mean cosine over all pairs of the rows (N, D), N ≥ 2: 0 for equal pictures, about 1 for unrelated ones.

    It is the total variance (divided by N − 1) of the rows at length 1.
    """
    count = len(features)
    unit = normalize(features.double(), dim=1)
    return float(unit.sub(unit.mean(0)).square().sum() / (count - 1))


def word_prior(word: str, pictures: Tensor, measure: SSIM, features: Features | None = None) -> WordPrior:
    """Score a word's pictures (N, 3, H, W) in [0, 1], N ≥ 2."""
    pairs = pairwise_ssim(pictures, measure)
    variance = None if features is None else feature_variance(features(pictures))
    return WordPrior(word, math.fsum(pairs) / len(pairs), pairs, variance)


def choose(priors: Sequence[WordPrior]) -> Choice:
    """The word of the lowest mean SSIM; where it is the same, of the highest variance; then the first.

    Raises:
        ValueError: no word, or words with different numbers of pictures.
    """
    if not priors or len({len(each.pairs) for each in priors}) != 1:
        raise ValueError("expected at least one word, and as many pictures of each")
    lowest = min(each.ssim for each in priors)

    def order(each: WordPrior) -> tuple[float, float]:
        tied = each.ssim - lowest < TIE
        return (lowest if tied else each.ssim, -(each.variance or 0.0) if tied else 0.0)

    ranked = tuple(sorted(priors, key=order))
    best = ranked[0]
    noise = {each.word: _standard_error(each.pairs, best.pairs) for each in ranked}
    same = tuple(
        each.word
        for each in ranked[1:]
        if each.ssim - lowest < TIE or abs(each.ssim - best.ssim) <= 2 * (noise[each.word] or 0.0)
    )
    return Choice(ranked, noise, same, _warning(ranked, same, noise))


def _warning(ranked: Sequence[WordPrior], same: Sequence[str], noise: Mapping[str, float | None]) -> str:
    if len(ranked) == 1:
        return "There is one word only, so nothing was compared."
    if len(same) == len(ranked) - 1:
        return (
            "All words are equal within noise: the model draws as varied pictures for each, and the choice is by "
            "chance. Draw more pictures of each, or try other words."
        )
    if any(each is None for each in noise.values()):
        return "With two pictures of each word the noise is unknown. Draw at least 4 before trusting small differences."
    return ""


def _standard_error(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Jackknife over seeds of the mean difference of two words' pairs; None with fewer than three seeds.

    Pairs that share a seed are not independent, so a seed is left out with all its pairs.
    """
    count = round((1 + math.sqrt(1 + 8 * len(ours))) / 2)
    if count < 3:
        return None
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    pairs = list(combinations(range(count), 2))
    left_out = []
    for seed in range(count):
        kept = [value for value, pair in zip(differences, pairs, strict=True) if seed not in pair]
        left_out.append(math.fsum(kept) / len(kept))
    mean = math.fsum(left_out) / count
    return math.sqrt((count - 1) / count * math.fsum((value - mean) ** 2 for value in left_out))


def prior_table(choice: Choice, about: str = "") -> str:
    """Markdown: a row a word, weakest prior first. ``about`` says how the pictures were drawn."""
    varied = choice.ranked[0].variance is not None
    head = ["", "word", "mean SSIM", "lowest", "highest", "above the first", *(["feature variance"] if varied else [])]
    body = []
    for place, each in enumerate(choice.ranked, 1):
        error = choice.noise[each.word]
        above = "" if place == 1 else f"{each.ssim - choice.ranked[0].ssim:.4f}"
        above += f" ± {error:.4f}" if error is not None and place > 1 else ""
        above += ", within noise" if each.word in choice.same else ""
        figures = [f"{value:.4f}" for value in (each.ssim, min(each.pairs), max(each.pairs))]
        more = [] if each.variance is None else [f"{each.variance:.4f}"]
        body.append([str(place), each.word, *figures, above, *more])
    told = f"**{choice.word}** has the weakest prior: its pictures differ most (lowest mean SSIM). {about}".strip()
    careful = (f"**Careful:** {choice.warning}", "") if choice.warning else ()
    return "\n".join((told, "", *careful, markdown_table(head, body), ""))


def prior_json(choice: Choice, settings: Mapping[str, Any]) -> str:
    """The same for programs."""
    words = [
        {
            "word": each.word,
            "ssim": each.ssim,
            "pairs": list(each.pairs),
            "feature_variance": each.variance,
            "standard_error": choice.noise[each.word],
            "within_noise": each.word in choice.same,
        }
        for each in choice.ranked
    ]
    return json.dumps({"chosen": choice.word, "warning": choice.warning, "words": words, **settings}, indent=1)
