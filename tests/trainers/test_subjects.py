"""Several subjects in one run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import PictureSet, from_images
from likeness.trainers.loop import train
from likeness.trainers.subjects import combined, prompts_of_each


def of(trigger: str, count: int, noun: str = "dog", **more: Any) -> PictureSet:
    return from_images(torch.rand(count, 16, 16, 3), trigger=trigger, class_noun=noun, resolution=16, **more)


def test_combined_keeps_what_is_each_subjects_own() -> None:
    """Fails if a trigger, repeats or flip is lost, pictures come in another order, or parts are nested."""
    one, two, three = of("sks", 2, repeats=3), of("ohwx", 1, "cat", flip=True), of("zwx", 1)
    both = combined([combined([one, two]), three], balanced=False)
    assert both.parts == both.members() == (one, two, three) and not both.balanced
    assert both.pictures == one.pictures + two.pictures + three.pictures
    assert (both.trigger, both.class_noun, both.flip) == ("sks, ohwx, zwx", "dog, cat", True)
    assert one.members() == (one,)


def test_what_cannot_be_combined_is_said() -> None:
    """Fails if one word is to mean two things, or nothing is combined."""
    with pytest.raises(ValueError, match=r"trigger 'sks', one for a 'dog' and one for a 'cat'"):
        combined([of("sks", 1), of("sks", 1, "cat")])
    with pytest.raises(ValueError, match="no dataset"):
        combined([])


def test_prompts_are_asked_of_each_subject() -> None:
    """Fails if a row of the sheet mixes subjects, or a prompt without a trigger is asked twice."""
    prompts = ("a {trigger} {class}", "a tree", "{trigger} swimming")
    two = combined([of("sks", 1), of("ohwx", 1, "cat")])
    asked, columns = prompts_of_each(prompts, two)
    assert asked == ("a sks dog", "sks swimming", "a ohwx cat", "ohwx swimming", "a tree") and columns == 2
    assert prompts_of_each(prompts, of("sks", 1)) == (("a sks dog", "a tree", "sks swimming"), 0)


@pytest.mark.parametrize("balanced", [True, False])
def test_a_run_sees_each_subject_equally(balanced: bool, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the training set's wish does not reach the order of a run: one picture against three."""
    some = data(4)
    examples = tuple(
        replace(example, subject=int(number > 0), latents=some.examples[0].latents)
        for number, example in enumerate(some.examples)
    )
    denoiser = toy()
    config = TrainingConfig(steps=12, rank=1, learning_rate=1e-3, targets="attention")
    train(denoiser, replace(some, examples=examples, balanced=balanced), config, tmp_path)
    assert sum(cond == 1.0 for cond in denoiser.seen) == (6 if balanced else 3)
