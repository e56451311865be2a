"""What a prompt says: its words, in a form in which trigger words are found, and the LoRAs that it names itself."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass

_TAG = re.compile(r"<(?:lora|lyco):([^<>]*)>", re.IGNORECASE)
_EMPHASIS = re.compile(r":\s*[+-]?\d*\.?\d+\s*(?=[)\]])")  # (word:1.2), [one:other:0.5]
_BREAK = ","
# Scripts that put no space between words, and emoji: each sign is a word.
_SIGN = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U0001f000-\U0001faff"
_WORD = re.compile(rf"[{_SIGN}]|[^\W_{_SIGN}]+|(?P<break>[,;|\n])")


@dataclass(frozen=True)
class Tag:
    """``<lora:name:0.7>``: a LoRA that the prompt names. name: as written; model, clip: strengths."""

    name: str
    model: float
    clip: float


@dataclass(frozen=True)
class Prompt:
    """text: the prompt without its tags. tags: in their order."""

    text: str
    tags: tuple[Tag, ...]


def parse_prompt(prompt: str) -> Prompt:
    """Takes ``<lora:name>``, ``<lora:name:0.7>`` and ``<lora:name:0.7:0.5>`` (model, text encoders) out of a prompt.

    A prompt without tags comes back as it is; around a tag, spaces and a comma too many go with it.
    Raises ValueError for a tag without a name, or with something else than finite numbers.
    """
    tags = [_tag(found[0], found[1]) for found in _TAG.finditer(prompt)]
    first, *rest = _TAG.split(prompt)[::2]
    text = first
    for piece in rest:
        left, right = text.rstrip(" \t,"), piece.lstrip(" \t,")
        comma = "," in text[len(left) :] + piece[: len(piece) - len(right)]
        text = left + (", " if comma else " ") + right if left and right else left or right
    return Prompt(text, tuple(tags))


def words_of(text: str) -> str:
    """The words of a text between single spaces, and a space at both ends: `` a photo of sks dog , blue sky ``.

    Case, accents' encoding and underscores do not count; weights such as ``(word:1.2)``, brackets and punctuation are
    gone, but a comma stands where a comma, semicolon, bar or line ends a phrase. So a phrase is part of a prompt
    exactly where the words of the one are in the words of the other.
    """
    text = _EMPHASIS.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    words: list[str] = []
    for found in _WORD.finditer(text):
        word = _BREAK if found["break"] else found[0]
        if word != _BREAK or (words and words[-1] != _BREAK):
            words.append(word)
    if words and words[-1] == _BREAK:
        words.pop()
    return f" {' '.join(words)} " if words else " "


def phrases_of(text: str) -> tuple[str, ...]:
    """The comma-separated phrases of a text, each as ``words_of`` gives it; empty ones are left out."""
    return tuple(f" {phrase.strip()} " for phrase in words_of(text).split(f" {_BREAK} ") if phrase.strip())


def _tag(whole: str, inside: str) -> Tag:
    name, *numbers = (part.strip() for part in inside.split(":"))
    try:
        strengths = [float(number) for number in numbers] or [1.0]
    except ValueError:
        strengths = []
    if not name or len(strengths) not in (1, 2) or not all(map(math.isfinite, strengths)):
        raise ValueError(
            f"the tag {whole[:100]} in the prompt is not understood; expected <lora:name:0.7>, or <lora:name:0.7:0.5> "
            "with another strength for the text encoders"
        )
    return Tag(name, strengths[0], strengths[-1])
