"""A protocol from end to end: subjects × prompts × seeds are drawn, scored, timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.model_patcher
from torch import Tensor

from ...metrics.costs import lora_rows, time_row
from ...metrics.protocols import Prompt, Protocol, picture_seeds, prompts_of
from ...metrics.rows import Row
from ...metrics.similarity import cosine_similarities
from ...trainers.dataset import PictureSet
from .contact_sheet import contact_sheet
from .drawn import Asked, How, draw_pictures
from .interrupt import Interrupt, InterruptProcessingException
from .previews import grid
from .progress import Reporter
from .prompt_scores import PromptScorer, prompt_scorer
from .scores import as_pictures


@dataclass(frozen=True)
class Subject:
    """Whom or what the pictures are to show.

    Attributes:
        name: for tables.
        trigger: the word that was taught, or empty.
        noun: what kind of thing it is.
        references: (H, W, 3) in [0, 1] each, of any sizes; may be empty.
    """

    name: str
    trigger: str
    noun: str
    references: tuple[Tensor, ...]


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation gives.

    Attributes:
        rows: scores of each picture, then costs.
        pictures: (N, H, W, 3) in [0, 1].
        sheet: (1, H, W, 3), a row a prompt.
        prompts: what each picture was scored against, in the pictures' order.
        notes: what the user must know.
    """

    rows: tuple[Row, ...]
    pictures: Tensor
    sheet: Tensor
    prompts: tuple[str, ...]
    notes: tuple[str, ...] = ()


def subjects_of(
    dataset: PictureSet | None, references: Tensor | None, trigger: str, noun: str, name: str
) -> list[Subject]:
    """One subject a member of the dataset, with its words; or one of loose pictures; or one without pictures.

    Args:
        trigger, noun, name: of loose pictures; where they are not empty, they replace the dataset's if it has one
            subject.

    Raises:
        ValueError: both a dataset and loose pictures, or pictures that are none.
    """
    if dataset is None:
        label = name or noun or trigger or "subject"
        return [Subject(label, trigger, noun, loose_pictures(references, "references"))]
    if references is not None:
        raise ValueError("Both references and a dataset are wired: the subject's pictures come from one of them.")
    members = dataset.members()
    alone = len(members) == 1
    found = []
    for number, member in enumerate(members, 1):
        words = (trigger if alone and trigger else member.trigger, noun if alone and noun else member.class_noun)
        label = name if alone and name else " ".join(words).strip() or "subject"
        if label in {other.name for other in found}:
            label = f"{label} {number}"
        found.append(Subject(label, *words, tuple(picture.pixels.float() / 255 for picture in member.pictures)))
    return found


def loose_pictures(images: Tensor | None, name: str) -> tuple[Tensor, ...]:
    """An IMAGE, or None -> (H, W, 3) in [0, 1] each.

    Raises:
        ValueError: no picture, another shape, or NaN.
    """
    return () if images is None else tuple(as_pictures(images, name).movedim(1, -1))


def evaluate(
    patcher: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    subjects: Sequence[Subject],
    protocol: Protocol,
    how: How,
    *,
    method: str,
    step: int | None,
    pictures: int,
    seed: int,
    by_class: bool,
    subject_models: Sequence[Any],
    prompt_model: Any | None,
    lora: Mapping[str, Tensor] | None,
    node_id: str | None,
) -> Evaluation:
    """Draw, then score.

    Args:
        method, step: the rows' labels.
        pictures: of each prompt; 0: as many as the protocol has.
        seed: of the first picture of each prompt; the next has the next one.
        by_class: draw with the class noun in place of the trigger.
        subject_models: MetricModels; each scores every picture against its subject's references.
        prompt_model: a MetricModel with a text encoder, ImageReward's RewardModel, or None.
        lora: whose size stands beside the scores.

    Raises:
        ValueError: nothing to score with, or no references.
        InterruptProcessingException: the user cancelled; pictures that were drawn are kept on the disk.
    """
    _check(subjects, subject_models, prompt_model)
    seeds = tuple(picture_seeds(seed, pictures or protocol.pictures))
    asked = [(one, each) for one in subjects for each in prompts_of(protocol, one.trigger, one.noun, by_class)]
    interrupt = Interrupt()
    total = len(asked) * len(seeds)
    reporter = Reporter(total, node_id, interrupt)

    def drawn(count: int, batch: Tensor) -> None:
        reporter.show(grid(batch), count, total)
        if interrupt.cancelled():
            raise InterruptProcessingException()

    # First what the networks may refuse: nobody wants to hear of it after an hour of drawing.
    references = [{one.name: reference_features(model, one.references) for one in subjects} for model in subject_models]
    scorer = None if prompt_model is None else prompt_scorer(prompt_model, [each.scored for _, each in asked])
    jobs = [Asked(each.drawn, seeds) for _, each in asked]
    found, batches = draw_pictures(patcher, clip, vae, jobs, how, reporter.text, drawn)
    reporter.text(f"scoring {total} pictures")
    labels = [(one, each, number, chosen) for one, each in asked for number, chosen in enumerate(seeds)]
    rows: list[Row] = []
    for model, known in zip(subject_models, references, strict=True):
        rows += _subject_rows(model, known, found, labels, method, step)
    if prompt_model is not None and scorer is not None:
        rows += _prompt_rows(prompt_model.description, scorer, found, labels, method, step)
    rows.append(time_row(batches, method, step, how.line(patcher.load_device)))
    if lora is not None:
        rows += lora_rows(lora, method, step)
    several = len(subjects) > 1
    sheet = contact_sheet(
        [
            (
                f"{one.name}: {each.drawn}" if several else each.drawn,
                found[place * len(seeds) : (place + 1) * len(seeds)],
            )
            for place, (one, each) in enumerate(asked)
        ]
    )
    return Evaluation(tuple(rows), found, sheet, tuple(each.scored for _, each, _, _ in labels))


Labels = Sequence[tuple[Subject, Prompt, int, int]]


def _check(subjects: Sequence[Subject], subject_models: Sequence[Any], prompt_model: Any | None) -> None:
    if not subject_models and prompt_model is None:
        raise ValueError("Nothing is to be scored: wire subject_model (with references or a dataset), or prompt_model.")
    bare = [one.name for one in subjects if not one.references]
    if subject_models and bare:
        raise ValueError(f"There are no pictures of {bare[0]!r} to compare with: wire references or a dataset.")


def _subject_rows(
    model: Any, references: Mapping[str, Tensor], found: Tensor, labels: Labels, method: str, step: int | None
) -> list[Row]:
    features = model.features(found.movedim(-1, 1))
    rows = []
    for place, (one, prompt, number, seed) in enumerate(labels):
        value = cosine_similarities(features[place : place + 1], references[one.name]).mean
        row = Row(model.subject_metric, value, method, one.name, prompt.scored, seed, step, number, model.description)
        rows.append(row)
    return rows


def _prompt_rows(
    model: str, scorer: PromptScorer, found: Tensor, labels: Labels, method: str, step: int | None
) -> list[Row]:
    values = scorer.scores(found.movedim(-1, 1), [prompt.scored for _, prompt, _, _ in labels]).tolist()
    return [
        Row(
            scorer.metric, value, method, one.name, prompt.scored, seed, step, number, model,
            scorer.notes[prompt.scored],
        )
        for value, (one, prompt, number, seed) in zip(values, labels, strict=True)
    ]  # fmt: skip


def reference_features(model: Any, pictures: Sequence[Tensor]) -> Tensor:
    """Features (N, D) of pictures (H, W, 3) of any sizes."""
    features: Tensor = model.features([picture.movedim(-1, 0) for picture in pictures])
    return features
