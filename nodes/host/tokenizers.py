"""The host's CLIP -> the tokenizers in it, each with the embedding of its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

AUTO = "auto"
FIRST = ("clip_l", "clip_g", "clip_h")
"""Tried in this order by "auto": CLIP's vocabulary is the one that rare tokens are sought in."""


@dataclass(frozen=True)
class Tokenizer:
    """One of the model's.

    Attributes:
        name: the host's, e.g. ``clip_l`` or ``t5xxl``.
        vocabulary: token -> id.
        embedding: (V, D), where the host keeps it.
    """

    name: str
    vocabulary: Mapping[str, int]
    embedding: Tensor
    host: Any

    def pieces(self, word: str) -> tuple[str, ...]:
        """The tokens of a word that stands after another one in a prompt."""
        alone, both = self._ids("a"), self._ids(f"a {word}")
        start = int(getattr(self.host, "tokens_start", 0)) + 1
        names = self.host.inv_vocab
        return tuple(str(names[number]) for number in both[start : start + len(both) - len(alone)])

    def _ids(self, text: str) -> list[int]:
        return [int(number) for number in self.host.tokenizer(text)["input_ids"]]


def tokenizers_of(clip: Any) -> dict[str, Tokenizer]:
    """All that the model's encoders use: of an SD3 without T5, clip_l and clip_g.

    Raises:
        ValueError: none that has a vocabulary and an encoder with an embedding.
    """
    found: dict[str, Tokenizer] = {}
    for name, host in vars(clip.tokenizer).items():
        weight = _embedding(getattr(clip.cond_stage_model, name, None))
        if weight is not None and isinstance(getattr(host, "inv_vocab", None), Mapping):
            vocabulary = {str(token): int(number) for number, token in host.inv_vocab.items()}
            found[name] = Tokenizer(name, vocabulary, weight, host)
    if not found:
        raise ValueError(
            f"This CLIP ({type(clip.cond_stage_model).__name__}) has no text encoder whose vocabulary and embedding "
            "can be read; wire the CLIP of a Stable Diffusion, SDXL, SD3 or Flux model."
        )
    return found


def chosen_tokenizer(found: Mapping[str, Tokenizer], name: str) -> Tokenizer:
    """The one of that name; "auto": CLIP-L, else CLIP-G, else CLIP-H, else the first.

    Raises:
        ValueError: there is none of that name.
    """
    wanted = name.strip()
    if wanted in ("", AUTO):
        return next((found[each] for each in FIRST if each in found), next(iter(found.values())))
    if wanted not in found:
        raise ValueError(f"This CLIP has no tokenizer {wanted!r}; it has {', '.join(found)}. Or write {AUTO}.")
    return found[wanted]


def _embedding(encoder: Any) -> Tensor | None:
    transformer = getattr(encoder, "transformer", None)
    ask = getattr(transformer, "get_input_embeddings", None)
    weight = getattr(ask(), "weight", None) if ask is not None else None
    return weight.detach() if isinstance(weight, Tensor) and not weight.is_meta else None
