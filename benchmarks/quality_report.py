"""From the runs of time_to_quality.py to figures, targets and tables. Pure: no torch, no clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from statistics import fmean, median, stdev

import report
from report import Finding

Rung = Mapping[str, float]
"""steps, wall, cpu, and the fields of quality_world.Score."""

MOST = 1 / 3
CLOCKS = ("wall", "cpu")


@dataclass(frozen=True)
class Subject:
    """What was found of one held-out subject.

    base: of the untrained model, at 0 steps. built_in: a rung a learning rate. ours: rungs in the order of steps.
    """

    name: str
    base: Rung
    built_in: Mapping[float, Rung]
    ours: Sequence[Rung]

    @property
    def curve(self) -> list[Rung]:
        return [self.base, *self.ours]


def best_rate(subjects: Sequence[Subject]) -> float:
    """The built-in node's learning rate of the highest mean similarity."""
    return max(subjects[0].built_in, key=lambda rate: fmean(s.built_in[rate]["similarity"] for s in subjects))


def first_at(curve: Sequence[Rung], similarity: float, what: str) -> float:
    """`what` where the curve, straight between its rungs, first reaches a similarity; inf where it never does."""
    if curve[0]["similarity"] >= similarity:
        return curve[0][what]
    for low, high in pairwise(curve):
        if high["similarity"] >= similarity:
            share = (similarity - low["similarity"]) / (high["similarity"] - low["similarity"])
            return low[what] + share * (high[what] - low[what])
    return inf


def mean_curve(curves: Sequence[Sequence[Rung]]) -> list[Rung]:
    """The mean over subjects at each step count that all of them have."""
    shared = set.intersection(*({rung["steps"] for rung in curve} for curve in curves))
    at = [[rung for rung in curve if rung["steps"] in shared] for curve in curves]
    return [{name: fmean(r[name] for r in rungs) for name in rungs[0]} for rungs in zip(*at, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """One subject, or the mean of all: the built-in node at the end of its run, Likeness at the same similarity."""

    name: str
    base: Rung
    built_in: Rung
    curve: Sequence[Rung]

    def ours(self, what: str) -> float:
        return first_at(self.curve, self.built_in["similarity"], what)

    def ratio(self, clock: str) -> float:
        """Our seconds for one of the built-in's; inf where its similarity was not reached."""
        return self.ours(clock) / self.built_in[clock]


def outcomes(subjects: Sequence[Subject]) -> list[Outcome]:
    """Each subject's, at the rate that is best for the mean; the mean itself is last."""
    rate = best_rate(subjects)
    each = [Outcome(s.name, s.base, s.built_in[rate], s.curve) for s in subjects]
    reference = mean_curve([[o.built_in] for o in each])[0]
    curve = mean_curve([o.curve for o in each])
    return [*each, Outcome("mean", curve[0], reference, curve)]


def judge(subjects: Sequence[Subject]) -> list[Finding]:
    """The targets: a third of the time, for the median subject and on the mean curve; the prompt's style as well."""
    *each, mean = outcomes(subjects)
    found = []
    for clock in CLOCKS:
        for name, figure in (("median", median(o.ratio(clock) for o in each)), ("mean-curve", mean.ratio(clock))):
            found.append(Finding(f"{clock}-time-to-quality:{name}", figure, f"<={MOST:.3f}", figure <= MOST))
    behind = [o.ours("style") - o.built_in["style"] for o in each if o.ours("style") < inf]
    noise = 2 * stdev(behind) / sqrt(len(behind)) if len(behind) > 1 else 0.0
    figure = fmean(behind) if behind else -inf
    found.append(Finding("style-against-built-in", figure, f">={-noise:.3f}", figure >= -noise))
    return found


def render(subjects: Sequence[Subject], findings: Sequence[Finding], plan: str, *, markdown: bool) -> str:
    """The whole output."""
    draw: Callable[[list[str], list[list[str]]], str] = report._markdown if markdown else report._columns
    rate = best_rate(subjects)
    rates = [
        [
            f"{each:g}" + (" (best)" if each == rate else ""),
            *(f"{fmean(s.built_in[each][what] for s in subjects):.3f}" for what in ("similarity", "nearest", "style")),
            f"{fmean(s.built_in[each]['others'] for s in subjects):.2f}",
            f"{fmean(s.built_in[each]['wall'] for s in subjects):.1f}",
            f"{fmean(s.built_in[each]['cpu'] for s in subjects):.1f}",
        ]
        for each in sorted(subjects[0].built_in)
    ]
    body = [
        [
            o.name,
            f"{o.base['similarity']:.3f}",
            f"{o.built_in['similarity']:.3f}",
            f"{o.built_in['wall']:.1f} / {o.built_in['cpu']:.1f}",
            *(
                ["never"] * 4
                if o.ours("cpu") == inf
                else [
                    f"{o.ours('steps'):.0f}",
                    f"{o.ours('wall'):.1f} / {o.ours('cpu'):.1f}",
                    f"{o.ratio('wall'):.2f}",
                    f"{o.ratio('cpu'):.2f}",
                ]
            ),
            *(
                f"{o.built_in[what]:.2f}, " + (f"{o.ours(what):.2f}" if o.ours(what) < inf else "–")
                for what in ("style", "others")
            ),
        ]
        for o in outcomes(subjects)
    ]
    curve = [
        [
            f"{r['steps']:.0f}",
            f"{r['cpu']:.1f}",
            *(f"{r[what]:.3f}" for what in ("similarity", "nearest", "style")),
            f"{r['others']:.2f}",
        ]
        for r in outcomes(subjects)[-1].curve
    ]
    lines = [
        f"{plan}.",
        "",
        "The built-in node, means over the subjects:",
        "",
        draw(["learning rate", "similarity", "nearest", "style", "others kept", "wall s", "CPU s"], rates),
        "",
        "Until Likeness is as similar:",
        "",
        draw(
            [
                "subject",
                "untrained",
                "built-in's similarity",
                "its wall / CPU s",
                "our steps",
                "our wall / CPU s",
                "wall ratio",
                "CPU ratio",
                "style, its and ours",
                "others kept, its and ours",
            ],
            body,
        ),
        "",
        "Likeness at its defaults, means over the subjects:",
        "",
        draw(["steps", "CPU s", "similarity", "nearest", "style", "others kept"], curve),
        "",
    ]
    return "\n".join([*lines, report.targets_met(findings, markdown)]) + "\n"
