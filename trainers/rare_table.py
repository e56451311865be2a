"""The ranking of rare words as a table to read and as JSON; the paper's 28 tokens have a table of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..lora.markdown import markdown_table
from .rare_tokens import PAPER_TOKENS, RankedWord

SHOWN_NEIGHBOURS = 3


@dataclass(frozen=True)
class Scan:
    """What a scan found.

    Attributes:
        tokenizer: whose vocabulary was scanned.
        vocabulary: tokens in it.
        whole: of them, words of their own.
        ranked: the words of the wanted length and letters, weakest prior first.
        pieces: of each of :data:`PAPER_TOKENS`, what the tokenizer makes of it as a word in a prompt.
        others: name of each other tokenizer of the model -> word -> tokens that it needs; words that are shown.
    """

    tokenizer: str
    vocabulary: int
    whole: int
    ranked: Sequence[RankedWord]
    pieces: Mapping[str, Sequence[str]]
    others: Mapping[str, Mapping[str, int]]


def scan_table(scan: Scan, count: int) -> str:
    """Markdown: the first ``count`` words, then the paper's tokens."""
    places = {each.word: place for place, each in enumerate(scan.ranked, 1)}
    body = []
    for place, each in enumerate(scan.ranked[:count], 1):
        mark = "yes" if each.word in PAPER_TOKENS else ""
        figures = (f"{each.score:.3f}", f"{each.norm_ratio:.3f}", f"{each.cosine:.3f}")
        nearest = ", ".join(each.nearest[:SHOWN_NEIGHBOURS])
        more = [str(counts.get(each.word, "")) for counts in scan.others.values()]
        body.append([str(place), each.word, *figures, nearest, str(each.token), mark, *more])
    head = [
        "",
        "word",
        "score",
        "norm",
        "cosine",
        "nearest",
        "token",
        "paper's",
        *(f"in {name}" for name in scan.others),
    ]
    whole = sum(len(pieces) == 1 for pieces in scan.pieces.values())
    papers = []
    for word in PAPER_TOKENS:
        pieces, found = scan.pieces[word], places.get(word)
        score = f"{scan.ranked[found - 1].score:.3f}" if found else ""
        papers.append([word, "yes" if len(pieces) == 1 else "no", " + ".join(pieces), str(found or ""), score])
    others = " **in …**: tokens that another tokenizer of the model needs for it." if scan.others else ""
    return "\n".join(
        (
            f"{len(scan.ranked)} words of one token in {scan.tokenizer} (its vocabulary: {scan.vocabulary} tokens, "
            f"{scan.whole} whole words), weakest prior first. **score**: mean percentile of norm and cosine, low is "
            "weak. **norm**: against the vocabulary's median. **cosine**: to the nearest words. A guess from the "
            f"embedding alone: pictures decide, see Token Prior (Likeness).{others}",
            "",
            markdown_table(head, body),
            "",
            f"Image-Alchemy's {len(PAPER_TOKENS)} tokens: {whole} of them are one token here, as a word in a "
            "prompt; the others are split into pieces.",
            "",
            markdown_table(["paper's", "one token", "becomes", "place above", "score"], papers),
            "",
        )
    )


def scan_json(scan: Scan, count: int) -> str:
    """The same for programs."""
    places = {each.word: place for place, each in enumerate(scan.ranked, 1)}
    words: list[dict[str, Any]] = [
        {
            **asdict(each),
            "paper": each.word in PAPER_TOKENS,
            "tokens": {name: counts.get(each.word) for name, counts in scan.others.items()},
        }
        for each in scan.ranked[:count]
    ]
    paper = [
        {
            "word": word,
            "pieces": list(pieces := scan.pieces[word]),
            "one_token": len(pieces) == 1,
            "place": places.get(word),
        }
        for word in PAPER_TOKENS
    ]
    about = {"tokenizer": scan.tokenizer, "vocabulary": scan.vocabulary, "whole_words": scan.whole}
    return json.dumps({**about, "ranked": len(scan.ranked), "words": words, "paper": paper}, indent=1)
