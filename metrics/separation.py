"""What can a metric tell apart? A subject's own pictures against those of other subjects, as its scores see them.

A metric whose scores of the subject's own photos and of another dog's overlap cannot say whether a generated dog is the
subject, however well it averages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .rows import Row
from .similarity import cosine_similarities

FloatArray = NDArray[np.float64]
SELF, SAME_CLASS, OTHERS = "same subject", "same class", "other classes"


@dataclass(frozen=True)
class Gap:
    """How well two sets of scores are told apart.

    Attributes:
        auc: the probability that a picture of the subject scores higher than one of the other set, ties by half; .5 is
            chance, 1 is always.
        d_prime: difference of means in units of the root of the mean of both variances; NaN where neither varies.
        overlap: share of the other set's pictures that score at least as high as the subject's lowest one.
    """

    auc: float
    d_prime: float
    overlap: float


@dataclass(frozen=True)
class Separation:
    """Scores of each picture against the references.

    Attributes:
        scores: set -> a score a picture; of the references themselves, each against all others.
        gaps: set other than the references -> how well the references are told apart from it.
    """

    scores: dict[str, FloatArray]
    gaps: dict[str, Gap]


def separation(references: Tensor, others: Mapping[str, Tensor]) -> Separation:
    """Mean cosine to the references: of each reference to the others (leave-one-out), and of every other picture.

    Args:
        references: features (N, D), N ≥ 2.
        others: name of a set -> features (M, D).

    Raises:
        ValueError: fewer than two references, no other set, or features without direction.
    """
    if len(references) < 2:
        raise ValueError(
            f"there are {len(references)} references; each is scored against the others, so give two or more"
        )
    if not others:
        raise ValueError(
            "there is nothing to tell the subject apart from: give pictures of the same or of other classes"
        )
    own = cosine_similarities(references, references).cosines.double().numpy()
    mine = (own.sum(1) - np.diagonal(own)) / (len(own) - 1)
    scores = {SELF: mine}
    for name, features in others.items():
        scores[name] = cosine_similarities(features, references).cosines.double().mean(1).numpy()
    return Separation(scores, {name: gap(mine, found) for name, found in scores.items() if name != SELF})


def gap(one: FloatArray, other: FloatArray) -> Gap:
    """Scores (N,) and (M,), none of them empty -> area under the ROC curve, d′, overlap."""
    lower, not_higher = (np.searchsorted(np.sort(other), one, side).mean() for side in ("left", "right"))
    above = (lower + not_higher) / (2 * len(other))
    spread = math.sqrt((_variance(one) + _variance(other)) / 2)
    apart = float(one.mean() - other.mean())
    return Gap(float(above), apart / spread if spread > 0 else math.nan, float((other >= one.min()).mean()))


def _variance(values: FloatArray) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def separation_rows(found: Separation, metric: str, model: str, subject: str) -> list[Row]:
    """A row a picture, its set as the method; and of each other set the AUC and d′."""
    rows = [
        Row(metric, float(value), name, subject, picture=place, model=model)
        for name, values in found.scores.items()
        for place, value in enumerate(values)
    ]
    for name, each in found.gaps.items():
        against = f"{SELF} against {name}"
        rows.append(Row("separation_auc", each.auc, against, subject, model=model))
        rows.append(Row("separation_d", each.d_prime, against, subject, model=model))
    return rows


def separation_table(found: Separation, model: str) -> str:
    """Markdown: each set's scores, and what the metric tells apart."""
    lines = [f"# What {model} tells apart", "", "| pictures | count | mean | deviation | lowest | highest |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for name, values in found.scores.items():
        deviation = f"{math.sqrt(_variance(values)):.3f}" if len(values) > 1 else "–"
        numbers = f"{values.mean():.3f} | {deviation} | {values.min():.3f} | {values.max():.3f}"
        lines.append(f"| {name} | {len(values)} | {numbers} |")
    lines += ["", f"| {SELF} against | AUC | d′ | overlap |", "| --- | --- | --- | --- |"]
    for name, each in found.gaps.items():
        apart = "–" if math.isnan(each.d_prime) else f"{each.d_prime:.2f}"
        lines.append(f"| {name} | {each.auc:.3f} | {apart} | {each.overlap:.0%} |")
    lines += [
        "",
        "Score: mean cosine to the references; each reference is scored against the others. AUC: how often the subject "
        "scores higher than the other picture (.5 is chance). d′: difference of means in deviations. Overlap: other "
        "pictures that score at least as high as the subject's lowest.",
    ]
    if SAME_CLASS in found.gaps and found.gaps[SAME_CLASS].auc < 0.9:
        lines += ["", "**This metric does not tell the subject from others of its class reliably (AUC below .9).** A "
                  "higher score may only mean: more of that class."]  # fmt: skip
    return "\n".join(lines) + "\n"
