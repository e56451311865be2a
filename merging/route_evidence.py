"""What speaks for each LoRA of a folder, of what a prompt says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .route_card import LoraCard
from .route_prompt import words_of

Embed = Callable[[Sequence[str]], Tensor]
"""Texts -> (texts, width), a row a text."""
_LONGEST_PHRASE = 3  # words; a longer caption is a sentence, of which the words count
# They are in every English caption, and tell nothing even in a folder of two.
_FUNCTION_WORDS = {"a", "an", "the", "of", "in", "on", "at", "with", "and", "or", "to", "for", "from", "by"}
_FUNCTION_WORDS |= {"is", "are", "as", "its", "his", "her", "this", "that", ","}


@dataclass(frozen=True)
class Evidence:
    """For one LoRA. trigger, words, text: 0 to 1. found: the trigger phrases that are in the prompt; terms: the words
    and phrases of captions and name that are, the most telling first. cosine: of prompt and LoRA, None without an
    encoder.
    """

    trigger: float = 0.0
    words: float = 0.0
    text: float = 0.0
    found: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    cosine: float | None = None


def weigh(words: str, cards: Sequence[LoraCard], embed: Embed | None = None) -> list[Evidence]:
    """The evidence for each card; words: of the prompt, as ``words_of`` gives them.

    idf(t) = ln((n + 1) / nₜ), of n cards of which nₜ have the term t.
    trigger = the most of Σ idf of the trigger's phrases in the prompt / Σ idf of all its phrases, over its triggers.
    words = the cosine of idf(t)·tf(t) of the card and of the prompt over all terms t (Salton and Buckley 1988); tf is
    the share of the card's captions with t, 1 for words of its name; of the prompt it is 1 or 0.
    text = max(0, (c − m) / (1 − m)): c the cosine of prompt and card, m the mean of c (of a single card 0),
    but not below 0, for what the prompt has in common with the whole folder is no reason to choose one of it.
    """
    triggers = [{phrase for trigger in card.triggers for phrase in trigger} for card in cards]
    terms = [_terms(card) for card in cards]
    trigger_idf, idf = _idf(triggers), _idf(terms)
    there = {f" {word} " for word in words.split()}
    hits = [term for term in idf if term in there or (" " in term.strip() and term in words)]
    length = math.sqrt(math.fsum(idf[term] ** 2 for term in hits))
    cosines = _cosines(words, cards, embed) if embed and cards else None
    mean = max(0.0, float(cosines.mean())) if cosines is not None and len(cards) > 1 else 0.0
    out = []
    for number, card in enumerate(cards):
        best = 0.0
        found: tuple[str, ...] = ()
        for trigger in card.triggers:
            called = tuple(phrase for phrase in trigger if phrase in words)
            share = math.fsum(trigger_idf[p] for p in called) / math.fsum(trigger_idf[p] for p in trigger)
            if share > best:
                best, found = share, called
        vector = {term: idf[term] * tf for term, tf in terms[number].items()}
        hit = {term: idf[term] * vector[term] for term in hits if term in vector}
        lengths = length * math.sqrt(math.fsum(value**2 for value in vector.values()))
        cosine = None if cosines is None else float(cosines[number])
        out.append(
            Evidence(
                best,
                min(1.0, math.fsum(hit.values()) / lengths) if lengths else 0.0,
                0.0 if cosine is None or mean >= 1 else min(1.0, max(0.0, (cosine - mean) / (1 - mean))),
                tuple(phrase.strip() for phrase in found),
                tuple(term.strip() for term in sorted(hit, key=lambda term: (-hit[term], term))),
                cosine,
            )
        )
    return out


def _terms(card: LoraCard) -> dict[str, float]:
    """Term -> tf. Of a short phrase the phrase and its words, of a sentence its words."""
    out: dict[str, float] = {}
    for phrase, share in card.captions.items():
        words = phrase.split()
        if 1 < len(words) <= _LONGEST_PHRASE:
            out[phrase] = min(1.0, out.get(phrase, 0.0) + share)
        for word in set(words) - _FUNCTION_WORDS:
            out[f" {word} "] = min(1.0, out.get(f" {word} ", 0.0) + share)
    for word in {*card.name_words, *words_of(card.noun).split()} - _FUNCTION_WORDS:
        out[f" {word} "] = 1.0
    return out


def _idf(cards: Sequence[Mapping[str, float] | set[str]]) -> dict[str, float]:
    counts = Counter(term for terms in cards for term in terms)
    return {term: math.log((len(cards) + 1) / count) for term, count in counts.items()}


def _cosines(words: str, cards: Sequence[LoraCard], embed: Embed) -> Tensor:
    """Of the prompt and each card, (cards,), float64: of where they lead from the empty text, without articles and the
    like, which both have in common with everything. 0 where a card says nothing.
    """
    texts = [words, *(words_of(card.text) for card in cards)]
    rows = embed(["", *(" ".join(w for w in text.split() if w not in _FUNCTION_WORDS) for text in texts)])
    away = (rows[1:] - rows[:1]).to(torch.float64)
    away = away / away.norm(dim=1, keepdim=True).clamp_min(1e-12)
    cosines: Tensor = away[1:] @ away[0]
    return cosines
