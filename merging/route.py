"""Which LoRAs of a folder a prompt asks for, and with what weights.

Three kinds of evidence, each from 0 to 1, are kept apart so that the choice can be explained:

- trigger: the LoRA's trigger words are in the prompt, word for word;
- words: the prompt's words are in its captions and its name, weighted by how rare they are in the folder;
- text: a text encoder finds the prompt nearer to it than to the folder's others.

Nothing here loads a LoRA.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..lora.inspection import UNKNOWN, are_different
from .route_card import LoraCard
from .route_evidence import Embed, Evidence, weigh
from .route_prompt import Prompt, Tag, words_of

_DIGITS = 4  # of a weight


@dataclass(frozen=True)
class RouteOptions:
    """total: the weights' sum. most: so many are chosen beside those that the prompt names. threshold: [0, 1], the
    score that one must have. trigger, words, text: [0, 1], how far each kind of evidence is trusted.

    Raises ValueError for what is out of range.
    """

    total: float = 1.0
    most: int = 3
    threshold: float = 0.3
    trigger: float = 0.8
    words: float = 0.7
    text: float = 0.4

    def __post_init__(self) -> None:
        trust = (self.trigger, self.words, self.text)
        if not all(0 <= one <= 1 for one in trust) or not any(trust):
            raise ValueError(f"the evidence is trusted by {trust}; expected 0 to 1, and one above 0")
        if not (math.isfinite(self.total) and self.total > 0):
            raise ValueError(f"the total of the weights is {self.total}; expected more than 0")
        if not 0 <= self.threshold <= 1 or self.most < 0:
            raise ValueError(f"threshold {self.threshold}, at most {self.most} LoRAs; expected 0 to 1, and 0 or more")


@dataclass(frozen=True)
class RoutedLora:
    """One LoRA and what became of it. score: 0 to 1. weight, clip: of the model and of the text encoders, 0 where it is
    not chosen. parts: what each kind of evidence adds to the score, in the order above. why: in words.
    """

    card: LoraCard
    evidence: Evidence
    score: float
    parts: tuple[float, ...]
    weight: float
    clip: float
    why: str

    @property
    def chosen(self) -> bool:
        """Whether it is used at all."""
        return self.weight != 0 or self.clip != 0


@dataclass(frozen=True)
class Route:
    """prompt: without the tags that named LoRAs. loras: the chosen first, then by score; the others are there, too."""

    prompt: str
    loras: tuple[RoutedLora, ...]
    options: RouteOptions
    with_text: bool

    @property
    def chosen(self) -> tuple[RoutedLora, ...]:
        """Those to merge or apply."""
        return tuple(one for one in self.loras if one.chosen)


def route(
    prompt: Prompt,
    cards: Sequence[LoraCard],
    options: RouteOptions,
    *,
    named: Mapping[str, Tag] | None = None,
    limits: Mapping[str, float] | None = None,
    architecture: str = UNKNOWN,
    embed: Embed | None = None,
) -> Route:
    """Weigh the evidence and share out the weights.

    The score is 1 − Π(1 − cᵢeᵢ), of the evidence eᵢ and how far it is trusted, cᵢ: any one kind can be enough, and
    together they are more (noisy-or; Pearl 1988, §4.3.2). Named LoRAs have the weights that the prompt
    gives them; what they leave of the total (by magnitude) goes to the `most` best of the others that reach the
    threshold, in proportion to their scores, none above its limit.

    named: file -> tag (see ``named_files``). limits: file -> highest weight, 1 where it has none; a card's own
    `highest` counts too. architecture: of the model; LoRAs of another are left out.
    Raises ValueError where a LoRA that the prompt names cannot be read or is for another model, or a limit is not above
    0.
    """
    named, limits = named or {}, limits or {}
    reasons = {card.file: _unfit(card, architecture) for card in cards}
    for card in cards:
        if card.file in named and reasons[card.file] and (named[card.file].model or named[card.file].clip):
            raise ValueError(f"the prompt names the LoRA {card.name}, which cannot be used: {reasons[card.file]}")
        if limits.get(card.file, 1.0) <= 0:
            raise ValueError(f"the highest weight of {card.name} is {limits[card.file]}; expected more than 0")
    fit = [card for card in cards if not reasons[card.file]]
    found = dict(zip((card.file for card in fit), weigh(words_of(prompt.text), fit, embed), strict=True))
    if not options.trigger and not options.words and not embed:
        raise ValueError("only the text encoder's evidence counts, and there is no text encoder: connect clip")
    loras = []
    for card in cards:
        evidence = found.get(card.file, Evidence())
        doubt, parts = 1.0, []
        for value in (options.trigger * evidence.trigger, options.words * evidence.words, options.text * evidence.text):
            parts.append(doubt * value)
            doubt *= 1 - value
        loras.append(RoutedLora(card, evidence, 1 - doubt, tuple(parts), 0.0, 0.0, reasons[card.file]))
    loras = _share_out(loras, options, named, limits)
    order = list(named)
    loras.sort(
        key=lambda one: (
            not one.chosen,
            order.index(one.card.file) if one.chosen and one.card.file in named else len(order),
            bool(reasons[one.card.file]),
            -one.score,
            one.card.name,
        )
    )
    return Route(prompt.text, tuple(loras), options, embed is not None)


def named_files(tags: Sequence[Tag], files: Sequence[str], titles: Mapping[str, str]) -> dict[str, Tag]:
    """file -> the tag that names it, the last where several do.

    A tag has a file's path below the folder, or its name without folders, or its title; without ending. files: as the
    host lists them: nothing else is ever opened. titles: file -> title, of those that are known.
    Raises ValueError for a tag that names none, or several.
    """
    plain = {file: file.replace("\\", "/") for file in files}
    stems = {file: name.rpartition(".")[0] or name for file, name in plain.items()}
    out: dict[str, Tag] = {}
    for tag in tags:
        said = tag.name.replace("\\", "/")
        found = [file for file in files if said in (plain[file], stems[file])]
        found = found or [file for file in files if said in (p.rpartition("/")[2] for p in (plain[file], stems[file]))]
        found = found or [file for file in files if titles.get(file) == said]
        if len(found) != 1:
            short = {stem.rpartition("/")[2]: stem for stem in stems.values()}
            near = difflib.get_close_matches(said.rpartition("/")[2], list(short), 3, 0.5)
            names = " or ".join(sorted(stems[file] for file in found[:3]) or [short[name] for name in near])
            hint = f"did you mean {names}?" if names else f"there are {len(files)} LoRAs in it"
            raise ValueError(
                f"the prompt names the LoRA {tag.name[:100]!r}, and "
                f"{'several have that name' if found else 'no file in the folder of LoRAs has that name'}; {hint}"
            )
        out[found[0]] = tag
    return out


def _unfit(card: LoraCard, architecture: str) -> str:
    if card.note:
        return card.note
    return f"for {card.architecture}" if are_different(card.architecture, architecture) else ""


def _share_out(
    loras: Sequence[RoutedLora], options: RouteOptions, named: Mapping[str, Tag], limits: Mapping[str, float]
) -> list[RoutedLora]:
    """The same LoRAs with their weights, and why."""
    rest = options.total - math.fsum(abs(tag.model) for tag in named.values())
    open_ = [one for one in loras if not one.why and one.card.file not in named]
    able = [one for one in open_ if one.score >= options.threshold and one.score > 0]
    best = sorted(able, key=lambda one: (-one.score, one.card.name))[: options.most] if rest > 0 else []
    taking, waiting = {one.card.file for one in best}, {one.card.file for one in able}
    beyond = f"not among the best {options.most}" if rest > 0 else "the LoRAs that the prompt names have all the weight"
    sum_ = math.fsum(one.score for one in best)
    out = []
    for one in loras:
        file, weight, clip, why = one.card.file, 0.0, 0.0, one.why
        if file in named:
            weight, clip = named[file].model, named[file].clip
            why = "named in the prompt" if weight or clip else "switched off in the prompt"
        elif file in taking:
            limit = min(limits.get(file, 1.0), one.card.highest or math.inf)
            weight = min(math.floor(rest * one.score / sum_ * 10**_DIGITS + 1e-6) / 10**_DIGITS, limit)
            clip, why = weight, "chosen"
        elif file in waiting:
            why = beyond
        elif not why:
            why = f"score below {options.threshold:g}"
        out.append(replace(one, weight=weight, clip=clip, why=why))
    return out
