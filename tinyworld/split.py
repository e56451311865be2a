"""Which subjects and styles pretraining sees, and which it never does. `split.json` is the record."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

RECORD = Path(__file__).with_name("split.json")

# npm package under @iconify-json, version, the word that captions use, licence
PACKS: dict[str, tuple[str, str, str]] = {
    "noto": ("1.2.9", "shaded", "Apache-2.0"),
    "twemoji": ("1.2.5", "bold", "CC-BY-4.0"),
    "openmoji": ("1.2.29", "outlined", "CC-BY-SA-4.0"),
    "fluent-emoji": ("1.2.7", "glossy", "MIT"),
    "fluent-emoji-flat": ("1.2.6", "flat", "MIT"),
    "emojione": ("1.2.3", "classic", "CC-BY-4.0"),
    "fluent-emoji-high-contrast": ("1.2.6", "monochrome", "MIT"),
    "noto-v1": ("1.2.5", "retro", "Apache-2.0"),
}
STYLES = tuple(PACKS)
HELD_OUT_STYLES = ("fluent-emoji-high-contrast", "noto-v1")
STYLE_WORDS = {style: word for style, (_, word, _) in PACKS.items()}

# noto's categories that are things, and the noun that stands for the class in a caption
CLASS_NOUNS = {
    "Animals & Nature": "creature",
    "Food & Drink": "food",
    "Travel & Places": "place",
    "Activities": "toy",
    "Objects": "object",
}

# families whose members differ by a detail that 64 pixels cannot hold
_LOOKALIKES = re.compile(
    r"oclock|thirty|moon|speaker|mailbox|chart|card-|sun-|cloud-|oncoming|globe|page-|lock|-book$|medal|music"
    r"|banknote|envelope|-face$|folder|tray|notebook|umbrella-|sunrise|sunset|-suit$|house|hourglass|file"
    r"|arrow|airplane-|pushpin|snowman-|mountain-|mobile-|e-mail|with-"
)


@dataclass(frozen=True)
class Split:
    """Names are the artwork's own (`hot-dog`); `class_of` maps a subject to its class noun."""

    pretrain_subjects: tuple[str, ...]
    held_out_subjects: tuple[str, ...]
    other_subjects: tuple[str, ...]  # seen by the VAE alone
    pretrain_styles: tuple[str, ...]
    held_out_styles: tuple[str, ...]
    class_of: dict[str, str]


def make_split(class_of: dict[str, str], seed: int = 0, pretrain: int = 300, held_out: int = 45) -> Split:
    """Split subjects: a held-out one shares no word with any other subject, so that its name gives nothing away."""
    names = sorted(class_of)
    words = Counter(word for name in names for word in set(name.split("-")))
    clear = [name for name in names if not _LOOKALIKES.search(name)]
    rng = random.Random(seed)
    rng.shuffle(clear)
    alone = [n for n in clear if n.count("-") <= 1 and all(words[word] == 1 for word in n.split("-"))]
    held = tuple(sorted(alone[:held_out]))
    rest = [name for name in clear if name not in held]
    if len(held) < held_out or len(rest) < pretrain:
        raise ValueError(f"{len(clear)} clear subjects cannot give {held_out} held out and {pretrain} to pretrain on")
    seen = tuple(sorted(rest[:pretrain]))
    other = tuple(name for name in names if name not in set(held) | set(seen))
    styles = tuple(style for style in STYLES if style not in HELD_OUT_STYLES)
    return Split(seen, held, other, styles, HELD_OUT_STYLES, class_of)


def library_subjects(split: Split, count: int = 12) -> tuple[str, ...]:
    """Clear subjects that the model never saw, beside the held-out ones: for those who need many LoRAs."""
    clear = [name for name in split.other_subjects if not _LOOKALIKES.search(name)]
    return tuple(clear[:: max(1, len(clear) // count)][:count])


def style_subjects(split: Split, count: int = 24) -> tuple[str, ...]:
    """Subjects of pretraining that show a style."""
    seen = split.pretrain_subjects
    return seen[:: max(1, len(seen) // count)][:count]


def save_split(split: Split, path: Path = RECORD) -> None:
    path.write_text(json.dumps(split.__dict__, indent=1) + "\n")


def load_split(path: Path = RECORD) -> Split:
    raw = json.loads(path.read_text())
    return Split(class_of=raw.pop("class_of"), **{key: tuple(names) for key, names in raw.items()})
