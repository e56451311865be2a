"""Which prompts a method is judged on: published protocols, each a JSON file beside this one, and the user's own list.

A prompt is a template. ``{trigger}`` is the word that was taught, ``{class}`` what kind of thing it is, ``{subject}``
both as the protocol puts them ("a sks dog", or "sks" alone). A picture is drawn with the trigger and scored against
the prompt with the class noun in its place, for no text encoder of a metric knows the trigger.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

OWN = "own prompts"
FILES = {
    "DreamBooth, objects": "dreambooth_objects.json",
    "DreamBooth, live subjects": "dreambooth_live.json",
    "FLUX study, faces": "flux_faces.json",
}
NAMES = (OWN, *FILES)


@dataclass(frozen=True)
class Protocol:
    """What to draw of each subject.

    Attributes:
        title: its name.
        source: where it was published; empty of an own list.
        templates: the prompts.
        pictures: of each prompt, each with a seed of its own.
        subject: what ``{subject}`` stands for.
        subject_by_class: the same without the trigger.
        subjects: the data set's subjects by class noun, for those who have its pictures.
    """

    title: str
    source: str
    templates: tuple[str, ...]
    pictures: int
    subject: str = "a {trigger} {class}"
    subject_by_class: str = "a {class}"
    subjects: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """One prompt of one subject.

    Attributes:
        drawn: what the model gets.
        scored: what the picture is held against: the class noun in place of the trigger. It also names the prompt in
            tables, so that methods with different triggers can be paired.
    """

    drawn: str
    scored: str


def published(name: str) -> Protocol:
    """A protocol of :data:`FILES`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in FILES:
        raise ValueError(f"there is no protocol {name!r}; there are {', '.join(FILES)}")
    found = json.loads((Path(__file__).parent / FILES[name]).read_text("utf-8"))
    return Protocol(
        found["title"],
        found["source"],
        tuple(template for group in found["prompts"].values() for template in group),
        int(found["pictures_a_prompt"]),
        found["subject"],
        found["subject_by_class"],
        tuple((noun, tuple(names)) for noun, names in found["subjects"].items()),
    )


def own(text: str, pictures: int = 4) -> Protocol:
    """One prompt a line; empty lines are left out.

    Raises:
        ValueError: there is no line.
    """
    lines = tuple(dict.fromkeys(line.strip() for line in text.splitlines() if line.strip()))
    if not lines:
        raise ValueError("there is no prompt to draw: write one a line, or choose a published protocol")
    return Protocol(OWN, "", lines, pictures)


def prompts_of(protocol: Protocol, trigger: str, noun: str, by_class: bool = False) -> list[Prompt]:
    """The protocol's prompts for one subject.

    Args:
        trigger: the word that was taught; empty for a model that was taught none: it gets the class noun.
        noun: what kind of thing the subject is, e.g. "dog".
        by_class: draw with the class noun, too, whatever the trigger is.

    Raises:
        ValueError: a prompt asks for a word that is not given, or for one that there is not.
    """
    return [_prompt(template, protocol, trigger.strip(), noun.strip(), by_class) for template in protocol.templates]


def _prompt(template: str, protocol: Protocol, trigger: str, noun: str, by_class: bool) -> Prompt:
    scored = template.replace("{subject}", protocol.subject_by_class)
    scored = re.sub(r"\{trigger\}\s*\{class\}", "{class}", scored).replace("{trigger}", "{class}")
    if trigger:  # a prompt may also name it outright: "sks dog" and "sks" are the dog
        both = rf"(?<!\w){re.escape(trigger)}(?!\w)"
        following = rf"(?:\s+(?:{{class}}|{re.escape(noun)}(?!\w)))?" if noun else ""
        scored = re.sub(both + following, "{class}", scored, flags=re.IGNORECASE)
    drawn = template.replace("{subject}", protocol.subject) if trigger and not by_class else scored
    for text in (drawn, scored):
        unknown = set(re.findall(r"\{[^{}]*\}", text)) - {"{trigger}", "{class}"}
        if unknown:
            raise ValueError(
                f"the prompt {template!r} names {min(unknown)}; it can name {{subject}}, {{trigger}}, {{class}}"
            )
    if "{class}" in scored + drawn and not noun:
        raise ValueError(f"the prompt {template!r} needs a class noun: say what kind of thing the subject is, e.g. dog")
    words = {"{trigger}": trigger, "{class}": noun}
    return Prompt(*(_filled(text, words) for text in (drawn, scored)))


def _filled(text: str, words: dict[str, str]) -> str:
    return " ".join(re.sub(r"\{(?:trigger|class)\}", lambda found: words[found.group()], text).split())


def picture_seeds(seed: int, pictures: int) -> Sequence[int]:
    """Seeds of a prompt's pictures: the same for each prompt and method, so that pictures can be paired."""
    return [(seed + number) % 2**64 for number in range(pictures)]
