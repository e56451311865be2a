"""Words that a text encoder knows as one token and has hardly learnt: a scan of its vocabulary, without a picture.

From the paper (Image-Alchemy, 3.1 and A.2): the vocabulary of CLIP's tokenizer is scanned for short gibberish words of
4 to 5 letters; their pictures decide (:mod:`.token_prior`); 28 tokens came out of it, :data:`PAPER_TOKENS`.

Ours: the score. A row of the embedding that training seldom touched is pulled to nothing by weight decay, so its norm
is small (Land and Bartolo 2024, arXiv 2405.05417, on language models), and it keeps the chance direction that it began
with, far from all others. So a word's score is the mean of its percentiles, among the words found, in norm and in mean
cosine to its nearest neighbours. It says nothing of what the layers above do with the row, which pictures show. It was
not measured on CLIP's own weights. On tiny-unet it misleads: all rows were drawn at random, nothing decayed, and the
155 words of 4 to 5 letters that were taught have the smaller norms (8.06 against 8.31 on average).

Of the paper's 28 tokens only ``iklan``, ``ffin`` and ``rrrr`` are one token as a word of their own. The other 25 are in
CLIP's vocabulary only as the beginning of longer words (``immen`` of "immense"): written as a word, they become two
tokens, ``im`` and ``men</w>``, both well known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import normalize

PAPER_TOKENS = (
    *("immen", "pasqu", "iklan", "rapi", "bhar", "ellu", "ffin", "icop", "aben", "mmor", "psal", "phyl", "rrrr"),
    *("wozni", "geaux", "koval", "ayles", "mccre", "fortn", "prote", "pascu", "lisam", "percu", "alfar", "insom"),
    *("offro", "syour", "redon"),
)
"""Image-Alchemy, A.2, in its order."""

ROWS, COLUMNS = 1024, 8192
"""Cosines that are in memory at once; those of all words with all words would take 10 GB."""


@dataclass(frozen=True)
class RankedWord:
    """A word that is one token.

    Attributes:
        word: as it is written in a prompt.
        token: its id. In vocabularies of byte pairs a later one was rarer in the text that they were made of.
        norm: ‖e‖ of its row e of the embedding.
        norm_ratio: norm / the median norm of all whole words.
        cosine: mean cosine of e and the k rows of other whole words that are nearest to it.
        nearest: those words, nearest first.
        score: mean of the percentiles (0 … 1, among the words found) of norm and cosine; low: a weak prior.
    """

    word: str
    token: int
    norm: float
    norm_ratio: float
    cosine: float
    nearest: tuple[str, ...]
    score: float


def whole_words(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Those tokens that are a word of their own, as it is written -> id.

    The vocabulary says itself how it marks them: CLIP ends words with ``</w>``, sentencepiece (T5) begins them with
    ``▁``, byte-level pairs (GPT-2, Qwen) with ``Ġ``; WordPiece (BERT) marks what is no beginning with ``##``. With all
    but the first, a word can also be the beginning of a longer one.

    Raises:
        ValueError: no such mark.
    """
    marks: dict[str, Callable[[str], str | None]] = {
        "</w>": lambda token: _from_bytes(token[:-4]) if token.endswith("</w>") else None,
        "▁": lambda token: token[1:] if token.startswith("▁") else None,
        "Ġ": lambda token: _from_bytes(token[1:]) if token.startswith("Ġ") else None,
        "##": lambda token: None if token.startswith(("##", "[")) else token,
    }
    counts = {
        mark: sum(token.endswith(mark) if mark == "</w>" else token.startswith(mark) for token in vocabulary)
        for mark in marks
    }
    mark = max(counts, key=lambda name: counts[name])
    if not counts[mark]:
        raise ValueError(
            f"this vocabulary of {len(vocabulary)} tokens marks no words: none ends with </w> (as CLIP's) or begins "
            "with ▁ (T5's), Ġ or ##. Scan another tokenizer of the model."
        )
    return {word: number for token, number in vocabulary.items() if (word := marks[mark](token))}


def candidates(words: Mapping[str, int], shortest: int, longest: int, letters: str = "[a-z]+") -> list[str]:
    """The words of ``shortest`` to ``longest`` letters that the regular expression ``letters`` matches as a whole.

    Raises:
        ValueError: no regular expression, lengths that cannot be, or no such word.
    """
    if not 1 <= shortest <= longest:
        raise ValueError(f"words of {shortest} to {longest} letters cannot be; expected 1 <= shortest <= longest")
    try:
        pattern = re.compile(letters)
    except re.error as why:
        raise ValueError(f"letters {letters!r} is no regular expression ({why}); expected one like [a-z]+") from why
    found = [word for word in words if shortest <= len(word) <= longest and pattern.fullmatch(word)]
    if not found:
        raise ValueError(
            f"none of the vocabulary's {len(words)} words has {shortest} to {longest} letters and matches {letters!r}; "
            "allow other lengths or letters"
        )
    return sorted(found)


def rank_words(
    words: Mapping[str, int],
    chosen: Sequence[str],
    embedding: Tensor,
    neighbours: int = 10,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[RankedWord]:
    """``chosen`` from the weakest prior to the strongest.

    Args:
        words: all whole words -> id; among them neighbours are sought.
        chosen: those to rank.
        embedding: (V, D), of any float dtype, anywhere.
        neighbours: k; where there are fewer other words, all.
        device: where cosines are computed, in float32.
        progress: called with (words done, words).

    Raises:
        ValueError: an id beyond the matrix, or no numbers in it.
    """
    if embedding.ndim != 2 or max(words.values()) >= embedding.shape[0]:
        raise ValueError(
            f"the embedding is of shape {tuple(embedding.shape)}, but the vocabulary has ids up to "
            f"{max(words.values())}; expected a row for each. Is it quantized, or of another model?"
        )
    names = list(words)
    rows = torch.tensor([words[name] for name in names])
    place = {name: number for number, name in enumerate(names)}
    norms = torch.cat([_rows(embedding, some, device).norm(dim=1).cpu() for some in torch.split(rows, COLUMNS)])
    if not bool(norms.isfinite().all()):
        raise ValueError("the embedding holds values that are no numbers (NaN or infinite); is the file damaged?")
    at = torch.tensor([place[word] for word in chosen])
    cosines, nearest = _nearest(embedding, rows, at, min(neighbours, len(names) - 1), device, progress)
    norm = norms[at].double().numpy()
    cosine = cosines.double().mean(1).numpy() if cosines.shape[1] else np.zeros(len(chosen))
    score = (_percentiles(norm) + _percentiles(cosine)) / 2
    median = float(norms.median()) or 1.0
    ranked = [
        RankedWord(
            word,
            words[word],
            float(norm[i]),
            float(norm[i]) / median,
            float(cosine[i]),
            tuple(names[j] for j in nearest[i].tolist()),
            float(score[i]),
        )
        for i, word in enumerate(chosen)
    ]
    return sorted(ranked, key=lambda each: (each.score, -each.token))


def _nearest(
    embedding: Tensor,
    rows: Tensor,
    at: Tensor,
    k: int,
    device: torch.device | str,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, Tensor]:
    """Cosines (n, k), falling, and places in ``rows`` (n, k) of what is nearest to each of ``rows[at]`` but itself."""
    all_cosines, all_places = [], []
    done = 0
    for some in torch.split(at, ROWS):
        ours = normalize(_rows(embedding, rows[some], device), dim=1)
        best = torch.full((len(some), 0), 0.0, device=device)
        places = torch.zeros((len(some), 0), dtype=torch.long, device=device)
        for start in range(0, len(rows), COLUMNS):
            theirs = normalize(_rows(embedding, rows[start : start + COLUMNS], device), dim=1)
            cosines = ours @ theirs.T
            mine = torch.nonzero((some >= start) & (some < start + len(theirs))).flatten()
            cosines[mine, some[mine] - start] = -2.0  # no word is its own neighbour
            found, where = cosines.topk(min(k + 1, cosines.shape[1]), dim=1)
            best, order = torch.cat([best, found], 1).sort(dim=1, descending=True, stable=True)
            places = torch.cat([places, where + start], 1).gather(1, order)[:, :k]
            best = best[:, :k]
        all_cosines.append(best.cpu())
        all_places.append(places.cpu())
        done += len(some)
        if progress:
            progress(done, len(at))
    return torch.cat(all_cosines), torch.cat(all_places)


def _rows(embedding: Tensor, which: Tensor, device: torch.device | str) -> Tensor:
    return embedding[which.to(embedding.device)].to(device, torch.float32)


def _percentiles(values: np.ndarray) -> np.ndarray:
    """0 for the lowest, 1 for the highest; equal values share the mean of theirs."""
    if len(values) < 2:
        return np.full(len(values), 0.5)
    return np.asarray((rankdata(values, method="average") - 1) / (len(values) - 1))


def _from_bytes(token: str) -> str | None:
    """The text of a token whose letters stand for bytes (GPT-2's table, CLIP's too); None where it is no whole one."""
    try:
        return bytes(_BYTES[letter] for letter in token).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None


def _byte_table() -> dict[str, int]:
    """Letter -> byte: printable bytes are themselves, the others follow from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


_BYTES = _byte_table()
