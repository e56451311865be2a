"""Several subjects in one run: their pictures combined, and prompts for each of them."""

from __future__ import annotations

from collections.abc import Sequence

from .dataset import PictureSet


def combined(sets: Sequence[PictureSet], *, balanced: bool = True) -> PictureSet:
    """One set of several, each with its own trigger, class noun, repeats and flip.

    Args:
        sets: one a subject; one that is combined itself counts as its parts.
        balanced: each subject is seen as often as the others, whatever the number of its pictures.

    Raises:
        ValueError: none given, or two subjects of one trigger but different class nouns.
    """
    members = [member for pictures in sets for member in pictures.members()]
    if not members:
        raise ValueError("There is no dataset to combine: wire at least one.")
    nouns: dict[str, str] = {}
    for member in members:
        noun = nouns.setdefault(member.trigger, member.class_noun)
        if member.trigger and noun != member.class_noun:
            raise ValueError(
                f"Two datasets have the trigger {member.trigger!r}, one for a {noun!r} and one for a "
                f"{member.class_noun!r}. Give each subject a word of its own."
            )
    return PictureSet(
        pictures=tuple(picture for member in members for picture in member.pictures),
        repeats=1,
        flip=any(member.flip for member in members),
        trigger=", ".join(dict.fromkeys(member.trigger for member in members if member.trigger)),
        class_noun=", ".join(dict.fromkeys(member.class_noun for member in members if member.class_noun)),
        parts=tuple(members),
        balanced=balanced,
    )


def prompts_of_each(prompts: Sequence[str], pictures: PictureSet) -> tuple[tuple[str, ...], int]:
    """(prompts, how many of them make a row of the sheet; 0: as it fits).

    Those that name ``{trigger}`` or ``{class}`` are asked of each subject, a row each; the others follow.
    """
    subjects = list(dict.fromkeys((member.trigger, member.class_noun) for member in pictures.members()))

    def filled(prompt: str, trigger: str, noun: str) -> str:
        return " ".join(prompt.replace("{trigger}", trigger).replace("{class}", noun).split())

    if len(subjects) == 1:
        return tuple(filled(prompt, *subjects[0]) for prompt in prompts), 0
    asking = [prompt for prompt in prompts if "{trigger}" in prompt or "{class}" in prompt]
    others = [prompt for prompt in prompts if prompt not in asking]
    each = [filled(prompt, *subject) for subject in subjects for prompt in asking]
    return (*each, *others), len(asking)
