"""What a LoRA file says of itself without being loaded: its header, its name, and notes that lie beside it.

Notes: `x.json` (A1111's "activation text" and "preferred weight"), `x.civitai.info` and `x.metadata.json` (download
helpers; "trainedWords"), `x.txt` (trigger words alone), for x.safetensors.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..lora.files import check_start, read_header
from ..lora.header import architecture_by_shapes
from ..lora.inspection import UNKNOWN
from ..lora.metadata import res_blocks_of
from .route_prompt import phrases_of, words_of

_NOTES = (".json", ".civitai.info", ".metadata.json", ".txt")
_LARGEST_NOTE = 8_000_000  # bytes: some hold whole pages of a site
_MOST_TRIGGERS, _MOST_CAPTIONS, _LONGEST = 64, 512, 300  # the longest is in characters
_MOST_CARDS = 10_000
_FOLDER = re.compile(r"^\d+_(.+)$")  # sd-scripts' folders of pictures: 10_sks dog
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
# Words of file names that say nothing of what is in the picture.
_NO_CONTENT = re.compile(
    r"v?\d+\w{0,3}|\w|lora|locon|loha|lokr|dora|lycoris|sd|sdxl|xl|flux|pony|illustrious|dev|fp16|bf16|fp32|final|last|"
    r"epoch|step|steps|rank|dim|model|version|safetensors|trained|training|likeness"
)


@dataclass(frozen=True)
class LoraCard:
    """One LoRA of the folder.

    file: as the host lists it. name: that with forward slashes and without ending. title: what the file calls itself.
    triggers: each a tuple of phrases (see ``words_of``) that belong together. captions: phrase -> share of the captions
    that have it, (0, 1]. noun: what kind of thing it is, if it says so. architecture: as ``architecture_of`` says.
    highest: the weight that its notes recommend, or None. note: why it could not be read.
    """

    file: str
    name: str
    title: str = ""
    triggers: tuple[tuple[str, ...], ...] = ()
    captions: Mapping[str, float] = field(default_factory=dict)
    noun: str = ""
    architecture: str = UNKNOWN
    highest: float | None = None
    note: str = ""

    @property
    def name_words(self) -> tuple[str, ...]:
        """Words of its file name and title that may say what it shows."""
        words = words_of(_CAMEL.sub(" ", f"{self.name.rpartition('/')[2]} {self.title}")).split()
        return tuple(dict.fromkeys(word for word in words if word != "," and not _NO_CONTENT.fullmatch(word)))

    @property
    def text(self) -> str:
        """The most telling of it in a line, for a text encoder: triggers, kind, name, the most frequent captions."""
        phrases = [phrase.strip() for trigger in self.triggers[:4] for phrase in trigger[:4]]
        frequent = sorted(self.captions, key=lambda phrase: -self.captions[phrase])[:6]
        parts = [*phrases, words_of(self.noun).strip(), " ".join(self.name_words), *map(str.strip, frequent)]
        return ", ".join(dict.fromkeys(filter(None, parts)))[:_LONGEST]


_cards: dict[Path, tuple[tuple[Any, ...], LoraCard]] = {}


def read_card(path: Path, file: str) -> LoraCard:
    """The card of the file at `path`, which the host lists as `file`. Of a safetensors file only the header is read.

    It is kept until the file or a note beside it changes. What cannot be read is no error: the card has a note.
    """
    stamp = (file, *card_stamp(path))
    if path in _cards and _cards[path][0] == stamp:
        return _cards[path][1]
    metadata: dict[str, str] = {}
    architecture, trouble = UNKNOWN, ""
    if path.suffix.lower() == ".safetensors":
        try:
            check_start(path)
            shapes, metadata = read_header(path)
            architecture = architecture_by_shapes(shapes, res_blocks_of(metadata))
        except (ValueError, OSError) as error:
            trouble = str(error)
    beside = [note for one, written in zip(_notes(path), stamp[2:], strict=True) if written and (note := _note(one))]
    card = card_of(file, metadata, beside, architecture, trouble)
    if len(_cards) >= _MOST_CARDS:
        _cards.clear()
    _cards[path] = stamp, card
    return card


def card_stamp(path: Path) -> tuple[Any, ...]:
    """Changes when the file or one of its notes does."""
    return tuple(map(_stamp, (path, *_notes(path))))


def _notes(path: Path) -> list[Path]:
    return [path.with_name(path.stem + ending) for ending in _NOTES]


def card_of(
    file: str,
    metadata: Mapping[str, str],
    notes: list[Mapping[str, Any]] | None = None,
    architecture: str = UNKNOWN,
    trouble: str = "",
) -> LoraCard:
    """What a file's metadata and the notes beside it say. Anything in them may be malformed, and is then left out."""
    notes = notes or []
    triggers = [*_triggers(metadata), *(trigger for note in notes for trigger in _noted_triggers(note))]
    phrases = [phrases for trigger in triggers if (phrases := phrases_of(trigger[:_LONGEST]))]
    highest = next((w for note in notes if (w := _number(note.get("preferred weight"))) is not None and w > 0), None)
    return LoraCard(
        file,
        file.replace("\\", "/").rpartition(".")[0] or file,
        (metadata.get("modelspec.title") or metadata.get("ss_output_name") or "")[:_LONGEST],
        tuple(dict.fromkeys(phrases))[:_MOST_TRIGGERS],
        _captions(metadata, notes),
        metadata.get("likeness.class_noun", "")[:_LONGEST],
        architecture,
        highest,
        trouble,
    )


def _triggers(metadata: Mapping[str, str]) -> Iterator[str]:
    """Texts that say which words call the LoRA."""
    if ours := metadata.get("likeness.trigger", ""):  # of a merged LoRA all of them; each calls its own part
        yield from ours.split(",")
    elif theirs := metadata.get("modelspec.trigger_phrase", ""):
        yield theirs
    for key in ("ss_dataset_dirs", "ss_tag_frequency"):
        for folder in _mapping(metadata.get(key)):
            if found := _FOLDER.match(folder):
                yield found[1]


def _noted_triggers(note: Mapping[str, Any]) -> Iterator[str]:
    yield str(note.get("activation text") or "")
    civitai = note.get("civitai")
    for words in (note.get("trainedWords"), civitai.get("trainedWords") if isinstance(civitai, dict) else None):
        yield from (word for word in words if isinstance(word, str)) if isinstance(words, list) else ()


def _captions(metadata: Mapping[str, str], notes: list[Mapping[str, Any]]) -> dict[str, float]:
    """Phrase -> share of the most frequent one's count. Tags of a site count as said of every picture."""
    counts: Counter[str] = Counter()
    for tags in _mapping(metadata.get("ss_tag_frequency")).values():
        for tag, number in tags.items() if isinstance(tags, dict) else ():
            if (count := _number(number)) and count > 0:
                for phrase in phrases_of(tag[:_LONGEST]):
                    counts[phrase] += min(round(count), 1_000_000)
    most = max(counts.values(), default=1)
    shares = {phrase: count / most for phrase, count in counts.most_common(_MOST_CAPTIONS) if count}
    texts = [metadata.get("modelspec.tags")]
    for note in notes:
        model = note.get("civitai", {}).get("model") if isinstance(note.get("civitai"), dict) else note.get("model")
        for tags in (note.get("tags"), model.get("tags") if isinstance(model, dict) else None):
            texts += tags[:_MOST_TRIGGERS] if isinstance(tags, list) else []
    for text in texts:
        shares |= dict.fromkeys(phrases_of(text[:_LONGEST]) if isinstance(text, str) else (), 1.0)
    return shares


def _note(path: Path) -> Mapping[str, Any]:
    """What a file beside the LoRA says; empty where it is no such note."""
    try:
        if path.stat().st_size > _LARGEST_NOTE:
            return {}
        text = path.read_text("utf-8-sig")
        return {"trainedWords": text[:4000].splitlines()} if path.suffix == ".txt" else _mapping(text)
    except (OSError, ValueError):
        return {}


def _mapping(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        about = path.stat()
    except (OSError, ValueError):
        return None
    return about.st_mtime_ns, about.st_size
