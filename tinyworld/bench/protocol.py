"""What every method is asked for, and how its pictures are scored: by the true ones, whole and by region.

A taught word is asked for in six styles on white, one of which no reference shows, and in four scenes: a style and a
background that no reference has. tinyworld has the true picture of each. And the model is asked for subjects that it
knew before, by their names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...experiments.scoring import Finished
from ...metrics.similarity import compare, cosine_similarities
from ...segmentation.subject import SubjectSegmenter, load_subject_segmenter
from ..classifier import asked_subjects
from ..dataset import BACKGROUNDS, WHITE, caption, words
from ..split import load_split
from ..truth import reference_styles, true_picture
from .graphs import Graph, draw, features, judge, node

PICTURES = 2  # of a prompt
OTHERS = 8  # subjects of pretraining, a picture each
SCORING = "bench 3"  # another text when `score` changes
MOST_DB = 40.0  # a plain colour to within a hundredth; more says nothing
REACH = 2  # pixels around the subject that belong to neither region


@dataclass(frozen=True)
class Asked:
    """A style (its id), a background's word or None for white, and a template of `dataset.caption`."""

    style: str
    background: str | None = None
    template: int = 0

    @property
    def name(self) -> str:
        return f"{self.style} {self.background}" if self.background else self.style

    @property
    def colour(self) -> tuple[int, int, int]:
        return BACKGROUNDS[self.background] if self.background else WHITE

    def prompt(self, word: str) -> str:
        return caption(word, self.style, self.background, self.template)

    def truth(self, subject: str, white: bool = False) -> Tensor:
        """(3, 64, 64) in [0, 1]: the true picture, as asked or on white."""
        return torch.from_numpy(true_picture(subject, self.style, WHITE if white else self.colour)).permute(2, 0, 1)


PLAIN = tuple(Asked(style, template=k % 3) for k, style in enumerate(load_split().pretrain_styles))
SCENES = (
    Asked("twemoji", "blue"),
    Asked("openmoji", "green", 1),
    Asked("fluent-emoji-flat", "pink", 2),
    Asked("noto", "gray"),
)


def draw_all(info: Mapping[str, Any], graph: Graph, model: list[Any], word: str) -> None:
    """Add a node "draw NAME" for all that is asked, and "draw other K" for what the model knew before."""
    graph["latent"] = node(info, "EmptyLatentImage", width=64, height=64, batch_size=PICTURES)
    graph["one"] = node(info, "EmptyLatentImage", width=64, height=64, batch_size=1)
    for k, asked in enumerate((*PLAIN, *SCENES)):
        draw(info, graph, model, asked.prompt(word), 50 + k, f" {asked.name}")
    for k, (subject, style) in enumerate(others()):
        draw(info, graph, model, caption(words(subject), style, None), 90 + k, f" other {k}", "one")


def others() -> list[tuple[str, str]]:
    """(subject, style) of pretraining that the judge can name."""
    split = load_split()
    subjects, styles = asked_subjects(split), split.pretrain_styles
    return [(subjects[(6 * k) % len(subjects)], styles[k % len(styles)]) for k in range(OTHERS)]


def score(finished: Finished) -> dict[str, float]:
    """The columns of tinyworld/RESULTS.md, of whatever of the protocol a run has drawn.

    fidelity: mean cosine of the pictures on white to the references (DreamBooth). truth: to the true picture in the
    style that was asked. prompt: share of all pictures whose style, and background if any, is the asked one. kept:
    share of other subjects named right. Of the scenes alone: truth; subject, the found subject on white against the
    true one on white; background, PSNR in dB of what is not subject against the asked colour; prompt.
    """
    subject = str(finished.values["subject"])
    found: dict[str, float] = {}
    plain, scenes = _drawn(finished, PLAIN), _drawn(finished, SCENES)
    if plain:
        pictures, asked = together(plain)
        references = torch.stack([Asked(style).truth(subject) for style in reference_styles()])
        found["fidelity"] = compare(pictures, references, features()).mean
        found["truth"] = matched(pictures, torch.stack([each.truth(subject) for each in asked]))
        everything, all_asked = together(plain | scenes)
        found["prompt"] = follows(everything, all_asked, subject)
    if scenes:
        found |= scene_scores(scenes, subject)
    known = [finished.pictures(f"draw other {k}") for k in range(OTHERS) if _has(finished, f"draw other {k}")]
    if known:
        with torch.no_grad():
            named = judge()(torch.cat(known))[0].argmax(1)
        right = torch.tensor([asked_subjects(load_split()).index(name) for name, _ in others()])
        found["kept"] = float((named == right).float().mean())
    if _has(finished, "save"):
        found["megabytes"] = finished.size("save") / 1e6
    if {"train", "load"} & set(finished.graph):  # of two subjects of a class the base model's pictures are the same
        found["seconds"] = finished.record.seconds
    return found


def scene_scores(scenes: Mapping[Asked, Tensor], subject: str) -> dict[str, float]:
    """The columns that begin with "scene", of the pictures (N, 3, 64, 64) of each."""
    pictures, asked = together(scenes)
    masks = subject_masks(pictures)
    decibels = torch.stack([background_psnr(*each) for each in zip(pictures, masks, asked, strict=True)])
    return {
        "scene truth": matched(pictures, torch.stack([each.truth(subject) for each in asked])),
        "scene subject": matched(
            on_white(pictures, masks), torch.stack([each.truth(subject, white=True) for each in asked])
        ),
        "scene background": float(decibels.mean()),
        "scene prompt": follows(pictures, asked, subject),
    }


def together(drawn: Mapping[Asked, Tensor]) -> tuple[Tensor, list[Asked]]:
    """All pictures in one batch, and what each was asked for."""
    return torch.cat(list(drawn.values())), [asked for asked, part in drawn.items() for _ in part]


def matched(pictures: Tensor, truths: Tensor) -> float:
    """Mean cosine of each picture to the truth in the same place; both (N, 3, 64, 64)."""
    cosines = cosine_similarities(features()(pictures), features()(truths)).cosines
    return float(cosines.diagonal().mean())


def follows(pictures: Tensor, asked: Sequence[Asked], subject: str) -> float:
    """Share of the pictures in the style and on the background that were asked.

    The style is that of the true picture of the subject, on that background, which is nearest in features. The judge
    of styles will not do: it was taught on other subjects, and names only half of these true pictures right.
    """
    styles = load_split().pretrain_styles
    seen = features()(pictures)
    right = [
        background(picture) == each.background
        and styles[int((in_styles(subject, each.background) @ feature).argmax())] == each.style
        for picture, feature, each in zip(pictures, seen, asked, strict=True)
    ]
    return sum(right) / len(right)


@cache
def in_styles(subject: str, ground: str | None) -> Tensor:
    """(styles, D): features of the subject's true pictures in the styles of pretraining, on one background."""
    truths = [Asked(style, ground).truth(subject) for style in load_split().pretrain_styles]
    return features()(torch.stack(truths))


def background(picture: Tensor) -> str | None:
    """The word of the colour (None: white) that is nearest to the median of the picture's outermost pixels."""
    edge = torch.cat([picture[:, :2].flatten(1), picture[:, -2:].flatten(1), picture[:, :, :2].flatten(1)], 1)
    seen = torch.cat([edge, picture[:, :, -2:].flatten(1)], 1).median(1).values
    colours: dict[str | None, tuple[int, int, int]] = {None: WHITE}
    colours.update(BACKGROUNDS)
    return min(colours, key=lambda word: float((seen - torch.tensor(colours[word]) / 255).square().sum()))


def background_psnr(picture: Tensor, mask: Tensor, asked: Asked) -> Tensor:
    """dB of what is outside of the mask (64, 64), and `REACH` pixels away from it, against the colour that was asked.

    NaN where nothing is outside.
    """
    outside = ~grown(mask)
    colour = torch.tensor(asked.colour)[:, None] / 255
    error = (picture[:, outside] - colour).square().mean()
    return (-10 * error.clamp_min(1e-12).log10()).clamp_max(MOST_DB)


def grown(mask: Tensor) -> Tensor:
    """(64, 64) in [0, 1] -> bool: the mask and `REACH` pixels around it."""
    wide = functional.max_pool2d((mask > 0.5).float()[None, None], 2 * REACH + 1, 1, REACH)
    return wide[0, 0] > 0.5


def on_white(pictures: Tensor, masks: Tensor) -> Tensor:
    """The subject alone: (N, 3, 64, 64) and masks (N, 64, 64) -> (N, 3, 64, 64)."""
    return pictures * masks[:, None] + (1 - masks[:, None])


def subject_masks(pictures: Tensor) -> Tensor:
    """(N, 3, 64, 64) -> (N, 64, 64) in [0, 1]: where the subject is, by the pack's own small segmenter."""
    with torch.no_grad():
        return _segmenter().probability(pictures)


@cache
def _segmenter() -> SubjectSegmenter:
    return load_subject_segmenter()


def _drawn(finished: Finished, wanted: Sequence[Asked]) -> dict[Asked, Tensor]:
    return {asked: finished.pictures(f"draw {asked.name}") for asked in wanted if _has(finished, f"draw {asked.name}")}


def _has(finished: Finished, name: str) -> bool:
    return name in finished.graph
