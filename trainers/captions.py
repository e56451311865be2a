"""Captions: filling in, rewriting, and drawing variants of them.

A caption is a sentence, or tags with a separator between ("sks, red hat, outdoors"). What is drawn at random is drawn
once for each picture and variant, by a seed, because texts are encoded before training.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import TYPE_CHECKING

import torch

from .randomness import generator

if TYPE_CHECKING:
    from .dataset import Picture, PictureSet

TRIGGERS = ("as it is", "front", "if missing", "before class", "replace class")
"""Where the trigger word goes: nowhere; to the front; to the front of captions that lack it; before or in place of the
class noun, or to the front of captions that name neither."""

_SHOWN = 4


def filler(trigger: str, class_noun: str) -> Callable[[str, str], str]:
    """A function that fills {trigger} and {class} in; other braces are an error where ``strict`` names the text."""
    words = {"trigger": trigger, "class": class_noun}

    def fill(text: str, strict: str) -> str:
        def word(match: re.Match[str]) -> str:
            if match.group(1) in words:
                return words[match.group(1)]
            if strict:
                raise ValueError(f"{strict} names {match.group(0)}; it can name {{trigger}} and {{class}}.")
            return match.group(0)

        return " ".join(re.sub(r"\{([^{}]*)\}", word, text).split())

    return fill


def class_caption(caption: str, trigger: str, class_noun: str) -> str | None:
    """The caption with the class noun in the subject's place: "a sks dog on grass" -> "a dog on grass".

    None where the caption does not name the trigger: nothing in it stands for the subject alone.
    """
    if not trigger.strip():
        return None
    noun = _phrase(class_noun)
    subject = _phrase(trigger) + (rf"(?:\s+{noun})?" if noun else "")
    text, count = re.subn(subject, lambda _: class_noun, caption, flags=re.IGNORECASE)
    return " ".join(text.split()) if count else None


@dataclass(frozen=True)
class CaptionRules:
    """How captions are changed: first text is replaced, then the trigger placed, then tags dropped and shuffled, and
    last comes what stands before and after, which is neither dropped nor moved.

    Attributes:
        trigger: one of :data:`TRIGGERS`.
        prefix: set before each caption; ``{trigger}`` and ``{class}`` are filled in, as in the next two.
        suffix: set after it.
        find: texts, as they stand, each replaced by the text of the same place in ``replacement`` (or by nothing).
        replacement: see ``find``.
        separator: of tags.
        shuffle: put the tags in another order.
        keep_tags: so many of the first tags stay where they are, and stay at all.
        tag_dropout: share of the other tags that is left out; one that names the trigger never is.
        variants: so many captions are drawn for each picture, where there is anything to draw.
        seed: decides what is drawn.
    """

    trigger: str = "as it is"
    prefix: str = ""
    suffix: str = ""
    find: tuple[str, ...] = ()
    replacement: tuple[str, ...] = ()
    separator: str = ","
    shuffle: bool = False
    keep_tags: int = 0
    tag_dropout: float = 0.0
    variants: int = 1
    seed: int = 0

    @property
    def drawn(self) -> bool:
        """Is anything left to chance?"""
        return self.shuffle or self.tag_dropout > 0

    def validate(self) -> CaptionRules:
        """Return self.

        Raises:
            ValueError: says what cannot be done.
        """
        if self.trigger not in TRIGGERS:
            raise ValueError(f"The trigger's place is {self.trigger!r}; choose one of {', '.join(TRIGGERS)}.")
        if self.drawn and not self.separator.strip():
            raise ValueError("Tags cannot be shuffled or dropped without a separator; ',' is usual.")
        if not 0 <= self.tag_dropout <= 1:
            raise ValueError(f"tag_dropout is {self.tag_dropout}; it must be from 0 to 1.")
        if self.variants < 1 or self.keep_tags < 0:
            raise ValueError(f"variants is {self.variants} and keep_tags {self.keep_tags}; at least 1 and 0.")
        if len(self.replacement) > len(self.find):
            raise ValueError(
                f"There are {len(self.replacement)} texts to put in and {len(self.find)} to find; one line each."
            )
        return self


def with_captions(pictures: PictureSet, rules: CaptionRules) -> PictureSet:
    """The same pictures with captions, and variants of captions, made by the rules. Variants that are there already
    are changed each; new ones are drawn of them in turn.

    Raises:
        ValueError: rules that cannot be followed.
    """
    rules.validate()
    parts = tuple(with_captions(part, rules) for part in pictures.parts)
    if parts:
        return replace(pictures, parts=parts, pictures=tuple(picture for part in parts for picture in part.pictures))
    if rules.trigger != "as it is" and not pictures.trigger.strip():
        raise ValueError("The dataset has no trigger word to put into the captions: give it one, or choose 'as it is'.")
    return replace(
        pictures,
        pictures=tuple(_changed(picture, number, pictures, rules) for number, picture in enumerate(pictures.pictures)),
    )


def _changed(picture: Picture, number: int, of: PictureSet, rules: CaptionRules) -> Picture:
    trigger, noun = of.trigger, of.class_noun
    bodies = [rewritten(caption, rules, trigger, noun) for caption in (picture.caption, *picture.variants)]
    captions = [_dressed(body, rules, trigger, noun) for body in bodies]
    variants = tuple(captions[1:])
    if rules.drawn:
        sources = bodies[1:] or bodies
        variants = tuple(
            _dressed(varied(sources[k % len(sources)], rules, trigger, chance), rules, trigger, noun)
            for k in range(rules.variants)
            for chance in (generator(rules.seed, "caption", number, k),)
        )
    return replace(picture, caption=captions[0], variants=variants)


def rewritten(caption: str, rules: CaptionRules, trigger: str, class_noun: str) -> str:
    """The part of the rules that is not left to chance, without prefix and suffix."""
    fill = filler(trigger, class_noun)
    text = caption
    for old, new in zip_longest(rules.find, rules.replacement, fillvalue=""):
        if old:
            text = text.replace(old, fill(new, "The replacement"))
    if text != caption and rules.separator.strip():
        text = _joined(_tags(text, rules.separator), rules.separator)
    text = " ".join(text.split())
    if rules.trigger == "as it is":
        return text
    if rules.trigger == "replace class" and _named(class_noun, text):
        return _swapped(rf"(?:{_phrase(trigger)}\s+)?{_phrase(class_noun)}", trigger, text)
    if rules.trigger != "front" and _named(trigger, text):
        return text
    if rules.trigger == "before class" and _named(class_noun, text):
        return _swapped(_phrase(class_noun), f"{trigger} {class_noun}", text, count=1)
    if rules.trigger == "front" and re.match(_phrase(trigger), text, re.IGNORECASE):
        return text
    separator = rules.separator.strip()
    return f"{trigger}{separator} {text}".strip() if text else trigger


def varied(caption: str, rules: CaptionRules, trigger: str, chance: torch.Generator) -> str:
    """The caption with tags dropped and shuffled."""
    tags = _tags(caption, rules.separator)
    drops = torch.rand(len(tags), generator=chance).tolist()
    order = torch.randperm(max(0, len(tags) - rules.keep_tags), generator=chance).tolist()
    if rules.shuffle:
        places = [*range(min(rules.keep_tags, len(tags))), *(rules.keep_tags + place for place in order)]
    else:
        places = list(range(len(tags)))
    kept = [
        tags[place]
        for place in places
        if place < rules.keep_tags or drops[place] >= rules.tag_dropout or _named(trigger, tags[place])
    ]
    return _joined(kept, rules.separator)


def caption_list(pictures: PictureSet) -> str:
    """All captions as text: a line a picture, and under it some of its variants."""
    lines = []
    for picture in pictures.pictures:
        lines.append(f"{picture.source}: {picture.caption or '(empty caption)'}")
        different = list(dict.fromkeys(picture.variants))
        lines += [f"    {variant or '(empty caption)'}" for variant in different[:_SHOWN]]
        if len(different) > _SHOWN:
            lines.append(f"    … and {len(different) - _SHOWN} more variants")
    return "\n".join(lines)


def _dressed(body: str, rules: CaptionRules, trigger: str, class_noun: str) -> str:
    """With prefix and suffix."""
    fill = filler(trigger, class_noun)
    text = f"{fill(rules.prefix, 'The prefix')} {body}".strip()
    suffix = fill(rules.suffix, "The suffix")
    return text + suffix if suffix[:1] in tuple(",.;:!?") else f"{text} {suffix}".strip()


def _tags(caption: str, separator: str) -> list[str]:
    return [" ".join(tag.split()) for tag in caption.split(separator.strip()) if tag.strip()]


def _joined(tags: list[str], separator: str) -> str:
    return f"{separator.strip()} ".join(tags)


def _phrase(text: str) -> str:
    """An expression that matches these words, however far apart, and no part of a longer word; '' for none."""
    words = r"\s+".join(re.escape(word) for word in text.split())
    return rf"(?<!\w){words}(?!\w)" if words else ""


def _named(words: str, text: str) -> bool:
    phrase = _phrase(words)
    return bool(phrase) and re.search(phrase, text, re.IGNORECASE) is not None


def _swapped(pattern: str, new: str, text: str, count: int = 0) -> str:
    return re.sub(pattern, lambda _: new, text, count=count, flags=re.IGNORECASE)
