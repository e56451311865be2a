"""The scan of a vocabulary: which words it takes, how it ranks them, and what CLIP makes of the paper's tokens."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.trainers import rare_tokens
from likeness.trainers.rare_table import Scan, scan_json, scan_table
from likeness.trainers.rare_tokens import PAPER_TOKENS, candidates, rank_words, whole_words


def toy(words: int, width: int, seed: int) -> tuple[dict[str, int], torch.Tensor]:
    """Words in some order of ids, with gaps between them, and an embedding whose row 0 is none of theirs."""
    chance = torch.Generator().manual_seed(seed)
    ids = (1 + torch.randperm(2 * words, generator=chance)[:words]).tolist()
    matrix = torch.randn(2 * words + 1, width, generator=chance) * torch.rand(2 * words + 1, 1, generator=chance)
    return {f"w{i}": number for i, number in enumerate(ids)}, matrix


def brute(words: dict[str, int], chosen: list[str], matrix: torch.Tensor, k: int) -> dict[str, tuple[float, ...]]:
    """norm, norm ratio, mean cosine, score by plain loops in float64, and the nearest words."""
    rows = {word: matrix[number].double().numpy() for word, number in words.items()}
    norms = {word: float(np.sqrt((row**2).sum())) for word, row in rows.items()}
    middle = sorted(norms.values())[(len(norms) - 1) // 2]  # torch's median is the lower one
    cosine, near = {}, {}
    for word in chosen:
        others = sorted(
            ((float(rows[word] @ rows[o] / max(norms[word] * norms[o], 1e-24)), o) for o in rows if o != word),
            reverse=True,
        )[:k]
        cosine[word] = sum(value for value, _ in others) / len(others)
        near[word] = tuple(o for _, o in others)

    def percentile(values: dict[str, float], word: str) -> float:
        below = sum(values[o] < values[word] for o in chosen)
        equal = sum(values[o] == values[word] for o in chosen)
        return (below + (equal - 1) / 2) / (len(chosen) - 1)

    score = {word: (percentile(norms, word) + percentile(cosine, word)) / 2 for word in chosen}
    return {word: (norms[word], norms[word] / middle, cosine[word], score[word], near[word]) for word in chosen}


@given(st.integers(4, 40), st.integers(2, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_ranking_is_that_of_brute_force_however_it_is_cut(
    count: int, k: int, rows: int, columns: int, seed: int
) -> None:
    """Oracle: loops in float64. Fails if a word is its own neighbour, a chunk is lost or taken twice, an id is taken
    for a place, rows beyond the words count, or the score mixes up its terms. k from 2 on: with 1, two words that are
    each other's nearest tie but for rounding."""
    words, matrix = toy(count, 5, seed)
    chosen = [word for i, word in enumerate(words) if i % 2 == 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rare_tokens, "ROWS", rows)
        patch.setattr(rare_tokens, "COLUMNS", columns)
        ranked = rank_words(words, chosen, matrix, k)
    expected = brute(words, chosen, matrix, k)
    assert {each.word for each in ranked} == set(chosen)
    assert [each.score for each in ranked] == sorted(each.score for each in ranked)
    for each in ranked:
        norm, ratio, cosine, score, near = expected[each.word]
        assert (each.norm, each.norm_ratio, each.cosine) == pytest.approx((norm, ratio, cosine), abs=1e-5)
        assert each.score == pytest.approx(score) and each.nearest == near and each.token == words[each.word]


def test_a_planted_word_comes_first_and_a_taught_family_last() -> None:
    """Fails if low norm or lonely rows count as a strong prior."""
    words, matrix = toy(30, 64, 1)
    matrix = torch.nn.functional.normalize(matrix, dim=1)
    names = list(words)
    for name in names[:5]:  # a family that is close together and large
        matrix[words[name]] = 1.5 * torch.nn.functional.normalize(
            matrix[words["w0"]] + 0.1 * matrix[words[name]], dim=0
        )
    lonely = torch.linalg.svd(matrix[[words[name] for name in names[:-1]]])[2][-1]  # nearly orthogonal to the others
    matrix[words[names[-1]]] = 0.01 * lonely
    ranked = [each.word for each in rank_words(words, names, matrix, 4)]
    assert ranked[0] == names[-1] and set(ranked[-5:]) == set(names[:5])


def test_half_precision_zero_rows_and_a_single_word_are_taken_and_nonsense_is_not() -> None:
    """Fails on a division by zero, or if a matrix of another model is read with the wrong rows."""
    words, matrix = toy(6, 4, 2)
    matrix[words["w3"]] = 0
    ranked = rank_words(words, list(words), matrix.half(), 50)
    zero = next(each for each in ranked if each.word == "w3")
    assert zero.norm == 0 and zero.cosine == 0 and len(zero.nearest) == 5
    (alone,) = rank_words({"one": 1}, ["one"], matrix, 3)
    assert alone.nearest == () and alone.score == 0.5
    with pytest.raises(ValueError, match=r"ids up to .* expected a row for each"):
        rank_words(words, ["w0"], matrix[: max(words.values())])
    with pytest.raises(ValueError, match="no numbers"):
        rank_words(words, ["w0"], matrix.fill_(float("nan")))


def test_words_are_read_as_each_kind_of_vocabulary_marks_them() -> None:
    """Fails if a beginning of words passes for a word, or letters of more than one byte come out garbled."""
    clip = {"immen": 0, "iklan</w>": 1, "caf\u00c3\u00a9</w>": 2, "\u00c3</w>": 3, "</w>": 4, "<|endoftext|>": 5}
    assert whole_words(clip) == {"iklan": 1, "café": 2}  # the byte C3 alone is no letter
    assert whole_words({"<extra_id_0>": 0, "▁dog": 1, "gy": 2, "▁": 3, "▁été": 4}) == {"dog": 1, "été": 4}
    assert whole_words({"Ġdog": 0, "gy": 1, "Ġ\u00c3\u00a9": 2}) == {"dog": 0, "é": 2}
    assert whole_words({"dog": 0, "##gy": 1, "[CLS]": 2}) == {"dog": 0}
    with pytest.raises(ValueError, match="marks no words"):
        whole_words({"a": 0, "b": 1})


def test_candidates_have_the_length_and_letters_that_were_asked_for() -> None:
    """Fails if the expression need not match the whole word, or a wrong input is met in silence."""
    words = {"abcd": 0, "abc": 1, "ab1d": 2, "zzzzz": 3, "zzzzzz": 4}
    assert candidates(words, 4, 5) == ["abcd", "zzzzz"]
    assert candidates(words, 3, 6, "z+") == ["zzzzz", "zzzzzz"]
    for arguments, message in (
        ((5, 4), "shortest <= longest"),
        ((0, 4), "shortest <= longest"),
        ((4, 5, "["), "no regular expression"),
        ((4, 5, "x+"), "none of the vocabulary's 5 words"),
    ):
        with pytest.raises(ValueError, match=message):
            candidates(words, *arguments)


@pytest.mark.host
def test_of_the_papers_28_tokens_clip_makes_one_token_of_three(host_path: Path) -> None:
    """Oracle: the host's own vocabulary and transformers' tokenizer. Fails if a token of the list is mistyped, or if
    the docstring's three are not those that stay whole."""
    from transformers import CLIPTokenizer

    folder = host_path / "comfy" / "sd1_tokenizer"
    if not folder.is_dir():
        pytest.skip("NOT TESTED: this host keeps CLIP's vocabulary elsewhere")
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    tokenizer = CLIPTokenizer.from_pretrained(str(folder))
    assert len(set(PAPER_TOKENS)) == 28 and all(word in vocabulary for word in PAPER_TOKENS)
    whole = [word for word in PAPER_TOKENS if len(tokenizer(word)["input_ids"]) == 3]  # with start and end
    assert whole == ["iklan", "ffin", "rrrr"] == [word for word in PAPER_TOKENS if f"{word}</w>" in vocabulary]
    assert all(len(tokenizer(word)["input_ids"]) == 4 for word in PAPER_TOKENS if word not in whole)
    words = whole_words(vocabulary)
    found = candidates(words, 4, 5)
    assert set(whole) <= set(found)
    for word in found[::50]:
        assert tokenizer(word)["input_ids"][1:-1] == [words[word]]


def test_the_table_marks_the_papers_tokens_and_says_which_are_split() -> None:
    """Fails if a word of the paper is ranked unmarked, or one that is split looks like a token, here or in JSON."""
    words = {"iklan": 0, "zzzz": 1, "a|b": 2}
    ranked = rank_words(words, list(words), torch.tensor([[1.0, 0], [2, 0], [0, 3]]), 1)
    pieces = {word: ("iklan</w>",) if word == "iklan" else ("im", "men</w>") for word in PAPER_TOKENS}
    scan = Scan("clip_l", 9, 3, ranked, pieces, {"t5xxl": dict.fromkeys(words, 2)})
    table = scan_table(scan, 3)
    (row,) = [line for line in table.splitlines() if "| iklan |" in line and line.endswith("| yes | 2 |")]
    assert "| immen | no | im + men</w> |  |  |" in table and "a\\|b" in table
    assert "1 of them are one token here" in table and row.count("|") == table.splitlines()[2].count("|")
    read = json.loads(scan_json(scan, 2))
    assert read["ranked"] == 3 and len(read["words"]) == 2 and len(read["paper"]) == 28
    assert read["paper"][2] == {
        "word": "iklan",
        "pieces": ["iklan</w>"],
        "one_token": True,
        "place": 1 + [each.word for each in ranked].index("iklan"),
    }
