"""A multimodal language model as a judge: is it the subject, and is it the style?

The protocol of LoRA.rar (Shenaj et al. 2025): one yes/no question for each reference picture, a strict majority of
"yes" for the subject and for the style, and a picture is good when both hold. Pictures are shown with a long side of
512. A batch is N attempts at one thing: its average, whether its best is good, and at which attempt the first good one
came. Their questions are not printed; ours are in :data:`SUBJECT_QUESTION` and :data:`STYLE_QUESTION`.

Only an answer that begins with yes or no counts. Anything else is unclear, counted apart, and never a yes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from .features import check_pictures

Verdict = Literal["yes", "no", "unclear", "failed"]
Side = Literal["subject", "style"]

LONG_SIDE = 512
SUBJECT_QUESTION = (
    "The first image is a photo of a certain {subject}. Does the second image show that very same {subject}? Its pose, "
    "surroundings and artistic style may differ. Begin your answer with Yes or No."
)
STYLE_QUESTION = (
    "The first image is an example of an artistic style. Is the second image made in that same style? What it shows "
    "may differ. Begin your answer with Yes or No."
)
_LEADING = re.compile(r"[\s\"'“”‘’*_`#>(\[]*(yes|no)(?![\w'’-])(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
_NOT_AN_ANSWER = re.compile(
    r"[\s\"'*_`]*(/|(and|or|nor)\s+(yes|no)\b|(doubt|idea|question|clue|way to)\b)", re.IGNORECASE
)


class AskFailed(Exception):
    """A question got no answer. `fatal`: nor would any other (a refused key, an unknown model)."""

    def __init__(self, message: str, fatal: bool = False) -> None:
        super().__init__(message)
        self.fatal = fatal


Ask = Callable[[str, Sequence[Image.Image]], str]
"""(question, pictures in order) -> the model's answer. Raises AskFailed."""


@dataclass(frozen=True)
class Asked:
    """One question of the transcript.

    Attributes:
        picture, reference: their places in the batches.
        side: what was asked about.
        question, answer: in full; the answer of a failed question is the failure.
        verdict: what the answer counts as.
    """

    picture: int
    side: Side
    reference: int
    question: str
    answer: str
    verdict: Verdict


@dataclass(frozen=True)
class Judged:
    """One picture. True or False by strict majority; None where failed questions could turn it, or none was asked."""

    subject: bool | None
    style: bool | None
    subject_share: float | None
    style_share: float | None
    good: bool | None


@dataclass(frozen=True)
class Judgement:
    """A batch.

    Attributes:
        pictures: in order.
        transcript: every question and answer.
        unclear, failed: how many answers were neither yes nor no, and how many questions got none.
    """

    pictures: tuple[Judged, ...]
    transcript: tuple[Asked, ...]

    @property
    def average(self) -> float | None:
        """Share of good pictures, of those that could be judged; None where none could."""
        share = _share([one.good for one in self.pictures])
        return None if math.isnan(share) else share

    @property
    def best_of_n(self) -> bool | None:
        """Is any picture good? None where that hangs on one that could not be judged."""
        if any(one.good for one in self.pictures):
            return True
        return None if any(one.good is None for one in self.pictures) else False

    @property
    def attempts(self) -> int | None:
        """Which attempt, from 1, gave the first good picture; None where none did, or an earlier one is not known."""
        for number, one in enumerate(self.pictures, 1):
            if one.good is None:
                return None
            if one.good:
                return number
        return None

    @property
    def unclear(self) -> int:
        """Answers that were neither yes nor no."""
        return sum(one.verdict == "unclear" for one in self.transcript)

    @property
    def failed(self) -> int:
        """Questions without an answer."""
        return sum(one.verdict == "failed" for one in self.transcript)


def parse_answer(answer: str) -> Literal["yes", "no", "unclear"]:
    """What it counts as. "Yes.", "**No**, because", "yes it is" count; "yes and no", "no idea", "Sure" do not."""
    found = _LEADING.match(answer)
    if found is None or _NOT_AN_ANSWER.match(found["rest"]):
        return "unclear"
    return "yes" if found[1].lower() == "yes" else "no"


def strict_majority(verdicts: Sequence[Verdict]) -> bool | None:
    """More than half are yes? Unclear is no yes; None where the failed ones could turn it, or there are none."""
    yes, failed = verdicts.count("yes"), verdicts.count("failed")
    if 2 * yes > len(verdicts):
        return True
    return None if not verdicts or 2 * (yes + failed) > len(verdicts) else False


def judge(
    pictures: Tensor,
    subject_references: Tensor | None,
    style_references: Tensor | None,
    ask: Ask,
    subject: str = "subject",
    subject_question: str = SUBJECT_QUESTION,
    style_question: str = STYLE_QUESTION,
    progress: Callable[[int, int], None] | None = None,
) -> Judgement:
    """Ask about each picture (N, 3, H, W) in [0, 1] against each reference.

    Args:
        subject_references, style_references: (M, 3, H', W') each, or None: then that side is not asked about, and a
            picture is good when the other holds.
        ask: the model.
        subject: the class noun, for ``{subject}`` in the questions.
        progress: called with (done, total) before each question.

    Raises:
        ValueError: no reference at all, pictures of another shape or range, or a question with an unknown {name}.
        AskFailed: there was no answer at all: one failed for good, or three did. Later, what is left counts as failed.
    """
    sides: list[tuple[Side, str, list[Image.Image]]] = []
    both: tuple[tuple[Side, str, Tensor | None], ...] = (
        ("subject", subject_question, subject_references),
        ("style", style_question, style_references),
    )
    for side, question, references in both:
        if references is not None:
            sides.append((side, _filled(question, subject), shown(references)))
    if not sides:
        raise ValueError("there is nothing to judge by: wire reference pictures of the subject, of the style, or both")
    total = len(pictures) * sum(len(references) for _, _, references in sides)
    transcript: list[Asked] = []
    judged = []
    given_up = ""
    verdict: Verdict
    for number, picture in enumerate(shown(pictures)):
        found: dict[str, list[Verdict]] = {"subject": [], "style": []}
        for side, question, known in sides:
            for place, reference in enumerate(known):
                if progress is not None:
                    progress(len(transcript), total)
                answer, verdict = given_up, "failed"
                if not given_up:
                    try:
                        answer = ask(question, (reference, picture))
                        verdict = parse_answer(answer)
                    except AskFailed as why:
                        answer = str(why)
                        given_up = _reason_to_stop(why, transcript)
                transcript.append(Asked(number, side, place, question, answer, verdict))
                found[side].append(verdict)
        judged.append(_judged(found["subject"], found["style"]))
    if progress is not None:
        progress(total, total)
    return Judgement(tuple(judged), tuple(transcript))


def average_good(judgement: Judgement) -> float:
    """:attr:`Judgement.average`; NaN for None."""
    return _number(judgement.average)


def average_subject(judgement: Judgement) -> float:
    """Share of pictures that show the subject, of those that could be judged; NaN where none could."""
    return _share([one.subject for one in judgement.pictures])


def average_style(judgement: Judgement) -> float:
    """Share of pictures in the style, of those that could be judged; NaN where none could."""
    return _share([one.style for one in judgement.pictures])


def best_of_n(judgement: Judgement) -> float:
    """:attr:`Judgement.best_of_n` as 1 or 0; NaN for None."""
    return _number(judgement.best_of_n)


def first_good(judgement: Judgement) -> float:
    """:attr:`Judgement.attempts`; NaN for None."""
    return _number(judgement.attempts)


def shown(pictures: Tensor) -> list[Image.Image]:
    """(N, 3, H, W) in [0, 1] -> 8-bit RGB, the long side 512 or less."""
    check_pictures(pictures)
    found = []
    for levels in (pictures.detach().float().cpu() * 255).round().to(torch.uint8).permute(0, 2, 3, 1):
        picture = Image.fromarray(levels.numpy())
        picture.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
        found.append(picture)
    return found


def _reason_to_stop(why: AskFailed, before: Sequence[Asked]) -> str:
    """Asking on costs time, or money, for nothing. Raises `why` where there was no answer yet."""
    if not why.fatal and (len(before) < 2 or any(one.verdict != "failed" for one in before[-2:])):
        return ""
    if all(one.verdict == "failed" for one in before):
        raise why
    return f"not asked any more, after: {why}"


def _judged(subject: Sequence[Verdict], style: Sequence[Verdict]) -> Judged:
    sides = [strict_majority(side) if side else None for side in (subject, style)]
    asked = [holds for holds, side in zip(sides, (subject, style), strict=True) if side]
    good = False if False in asked else None if None in asked else True
    shares = [side.count("yes") / len(side) if side else None for side in (subject, style)]
    return Judged(sides[0], sides[1], shares[0], shares[1], good)


def _filled(question: str, subject: str) -> str:
    try:
        filled = question.format(subject=subject.strip() or "subject")
    except (KeyError, IndexError, ValueError) as why:
        raise ValueError(f"the question {question[:80]!r} has a placeholder other than {{subject}} ({why})") from why
    if not filled.strip():
        raise ValueError("a question is empty; leave its default, or write one that asks for Yes or No")
    return filled


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _share(held: Sequence[bool | None]) -> float:
    known = [one for one in held if one is not None]
    return sum(known) / len(known) if known else math.nan
