"""A scan of the vocabulary of one of the host's text encoders."""

from __future__ import annotations

from typing import Any

import comfy.model_management

from ...trainers.rare_table import Scan
from ...trainers.rare_tokens import PAPER_TOKENS, candidates, rank_words, whole_words
from .interrupt import Interrupt, InterruptProcessingException
from .progress import Reporter
from .tokenizers import chosen_tokenizer, tokenizers_of


def find_tokens(
    clip: Any,
    tokenizer: str,
    shortest: int,
    longest: int,
    letters: str,
    count: int,
    neighbours: int,
    node_id: str | None,
) -> Scan:
    """Scan. Arguments as of the node.

    Raises:
        ValueError: no such tokenizer, or no such word in it.
        InterruptProcessingException: the user cancelled.
    """
    found = tokenizers_of(clip)
    scanned = chosen_tokenizer(found, tokenizer)
    words = whole_words(scanned.vocabulary)
    # A vocabulary may hold words that its tokenizer never makes, and unigram tokenizers may prefer pieces.
    wanted = [word for word in candidates(words, shortest, longest, letters) if len(scanned.pieces(word)) == 1]
    if not wanted:
        raise ValueError(
            f"{scanned.name} makes several tokens of each word of these lengths and letters; allow others."
        )
    interrupt = Interrupt()
    reporter = Reporter(len(wanted), node_id, interrupt)
    reporter.text(f"comparing {len(wanted)} words of {scanned.name} with {len(words)}")

    def progress(done: int, total: int) -> None:
        reporter.bar.update_absolute(done, total)
        if interrupt.cancelled():
            raise InterruptProcessingException()

    ranked = rank_words(
        words, wanted, scanned.embedding, neighbours, comfy.model_management.get_torch_device(), progress
    )
    shown = [each.word for each in ranked[:count]]
    others = {
        name: {word: len(other.pieces(word)) for word in shown}
        for name, other in found.items()
        if other.vocabulary != scanned.vocabulary
    }
    pieces = {word: scanned.pieces(word) for word in PAPER_TOKENS}
    return Scan(scanned.name, len(scanned.vocabulary), len(words), ranked, pieces, others)
