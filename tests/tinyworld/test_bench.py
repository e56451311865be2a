"""How the bench scores: on true pictures, whose scores are known, and on wrong ones."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from likeness.experiments.store import Record
from likeness.experiments.table import summarise
from likeness.tinyworld.bench import methods, protocol, results
from likeness.tinyworld.bench.protocol import PLAIN, SCENES, Asked
from likeness.tinyworld.split import load_split

SUBJECT, OTHER = "dolphin", "radio"


def truths(subject: str, asked: tuple[Asked, ...] = SCENES) -> dict[Asked, torch.Tensor]:
    return {each: each.truth(subject)[None] for each in asked}


@pytest.mark.parametrize("asked", [*SCENES, PLAIN[0]], ids=lambda asked: asked.name)
def test_the_background_of_a_true_picture_is_named(asked: Asked) -> None:
    """Fails if colours are compared in another scale, or the subject counts as background."""
    assert protocol.background(asked.truth(SUBJECT)) == asked.background


def test_decibels_are_those_of_the_formula_outside_of_the_mask_alone() -> None:
    """Closed form: an error of .1 everywhere is 20 dB, whatever is inside of the mask and next to it."""
    asked = SCENES[0]
    picture = (torch.tensor(asked.colour) / 255)[:, None, None].expand(3, 64, 64) - 0.1
    mask = torch.zeros(64, 64)
    mask[20:40, 20:40] = 1
    spoilt = picture.clone()
    spoilt[:, 18:42, 18:42] = 0  # the mask and two pixels around it
    assert float(protocol.background_psnr(spoilt, mask, asked)) == pytest.approx(20, abs=1e-3)
    spoilt[:, 17, 30] = 0  # three pixels away
    assert float(protocol.background_psnr(spoilt, mask, asked)) < 19.99
    assert math.isnan(float(protocol.background_psnr(picture, torch.ones(64, 64), asked)))


def test_the_truth_scores_best_and_another_subject_by_its_subject_alone_worse() -> None:
    """Fails if truths are paired wrongly, or regions mix: a wrong subject must cost no background, nor the reverse. The
    subject's own score is below 1 by what the segmenter misses."""
    right = protocol.scene_scores(truths(SUBJECT), SUBJECT)
    wrong = protocol.scene_scores(truths(OTHER), SUBJECT)
    assert right["scene truth"] == pytest.approx(1, abs=1e-4)
    assert right["scene subject"] > 0.8 and wrong["scene subject"] < right["scene subject"] - 0.3
    assert right["scene background"] > 35 and wrong["scene background"] > 35
    on_wrong_colours = {
        asked: replace(asked, background=other.background).truth(SUBJECT)[None]
        for asked, other in zip(SCENES, (*SCENES[1:], SCENES[0]), strict=True)
    }
    moved = protocol.scene_scores(on_wrong_colours, SUBJECT)
    assert moved["scene background"] < 15 and moved["scene prompt"] == 0
    assert moved["scene subject"] > 0.75


def test_true_pictures_follow_their_prompts() -> None:
    """Fails if styles or backgrounds are paired in another order: then hardly one in six would be right."""
    drawn = {asked: asked.truth(SUBJECT)[None] for asked in (*PLAIN, *SCENES)}
    pictures, asked = protocol.together(drawn)
    assert protocol.follows(pictures, asked, SUBJECT) == 1
    assert protocol.follows(pictures.roll(1, 0), asked, SUBJECT) == 0


def test_others_are_subjects_that_pretraining_saw() -> None:
    """A held-out one could not be kept, for it was never known."""
    assert len(set(protocol.others())) == protocol.OTHERS
    assert {name for name, _ in protocol.others()} <= set(load_split().pretrain_subjects)


def test_plans_teach_what_image_alchemy_loads() -> None:
    """Fails if a form leaves out the overfitted LoRA that the pipeline's graph names."""
    for plan in (methods.LONG, methods.SHORT):
        assert methods.OVERFIT in plan.steps


def records(priors: dict[str, float]) -> list[Record]:
    return [
        Record(
            f"{weight}{subject}",
            {"family": "lora", "method": f"LoRA, prior λ {weight}, 400 steps", "subject": subject},
            "done",
            results={"fidelity": value, "truth": value, "prompt": 0.5, "kept": 0.5},
        )
        for weight, value in priors.items()
        for subject in ("a", "b")
    ]


@pytest.mark.parametrize(
    ("priors", "shows"),
    [({"0.25": 0.6, "0.5": 0.5, "1": 0.4}, True), ({"0.25": 0.4, "0.5": 0.5, "1": 0.6}, False)],
)
def test_the_page_says_whether_the_published_order_of_priors_shows(priors: dict[str, float], shows: bool) -> None:
    """Fails if the sentence does not turn with the figures."""
    found = records(priors)
    said = results.published(summarise(found, ("family", "method"), ("subject",)), found)
    assert ("The same order at its ends" in said) is shows
    assert ("does not show" in said) is not shows


def test_differences_are_of_the_same_subjects() -> None:
    """By hand: +.1 and +.3 against the same subject's plain LoRA. Fails if means over other subjects are compared,
    which would give −.2, or a difference of one subject is printed as if it had an interval."""
    plain = {"a": 0.2, "b": 0.4, "c": 0.9}
    truth = {methods.PLAIN_LORA: plain, "sure": {"a": 0.3, "b": 0.5}, "unsure": {"a": 0.3, "b": 0.7}, "one": {"a": 0.9}}
    found = [
        Record(f"{name}{subject}", {"method": name, "subject": subject}, "done", results={"truth": value})
        for name, of in truth.items()
        for subject, value in of.items()
    ]
    page = "\n".join(results.against(found))
    assert "| sure | **+0.100 [+0.100, +0.100]** |" in page
    assert "| unsure | +0.200 [-1.071, +1.471] |" in page  # t of .975 at one degree of freedom, 12.71, times .1
    assert "| one |" not in page and f"| {methods.PLAIN_LORA} |" not in page
    assert results.against([record for record in found if record.values["method"] != methods.PLAIN_LORA]) == []


@pytest.mark.parametrize(("ahead", "shows"), [(0.1, True), (-0.1, False)])
def test_the_page_says_whether_a_paper_s_claim_shows(ahead: float, shows: bool) -> None:
    """DoRA ahead of, or behind, LoRA on both subjects. Fails if the sentence does not turn with the sign."""
    found = [
        Record(f"{name}{subject}", {"method": name, "subject": subject}, "done", results={"truth": value})
        for name, add in ((methods.PLAIN_LORA, 0.0), ("dora, 200 steps", ahead))
        for subject, value in (("a", 0.4 + add), ("b", 0.6 + 1.01 * add))
    ]
    said = results.published(summarise(found, ("method",), ("subject",)), found)
    assert ("It shows" in said) is shows and ("does not show" in said) is not shows
    assert f"{ahead:+.1f}" in said


@pytest.mark.parametrize(("zipped", "shows"), [(0.5, True), (0.3, False)])
def test_the_page_says_whether_learnt_merges_are_ahead(zipped: float, shows: bool) -> None:
    """Fails if the order of merges is told whatever the figures."""
    found = [
        Record(name, {"method": name, "subject": "a", "style": "b"}, "done", results={"truth": value})
        for name, value in (("direct", 0.4), ("ZipLoRA", zipped))
    ]
    said = results.published([], [], summarise(found, ("method",), ("subject", "style")))
    assert ("The same order" in said) is shows and f"ZipLoRA {zipped:.3f}" in said
