"""Routing: prompts are parsed as written, evidence is what its formulas say, weights add up, and nothing is loaded."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.lora.files import write_safetensors
from likeness.merging import route_card
from likeness.merging.route import Route, RouteOptions, named_files, route
from likeness.merging.route_card import LoraCard, card_of, read_card
from likeness.merging.route_evidence import weigh
from likeness.merging.route_prompt import Tag, parse_prompt, phrases_of, words_of
from likeness.merging.route_report import route_files, route_json, route_plot, route_table
from likeness.merging.selection import select_files

WORDS = st.text("abcdxyzäß小", min_size=1, max_size=4)
FREE = st.text(st.characters(blacklist_characters="<>", blacklist_categories=["Cs"]), max_size=12)
NUMBERS = st.floats(-3, 3).map(lambda number: round(number, 3))


def card(name: str, metadata: dict[str, Any] | None = None, **more: Any) -> LoraCard:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (metadata or {}).items()}
    return card_of(f"{name}.safetensors", texts, **more)


def captions(**counts: int) -> dict[str, Any]:
    return {"ss_tag_frequency": {"pictures": {key.replace("_", " "): count for key, count in counts.items()}}}


# Prompts


@given(st.lists(st.tuples(WORDS, NUMBERS, st.one_of(st.none(), NUMBERS)), max_size=4), st.lists(FREE, min_size=5))
def test_tags_are_taken_out_and_the_rest_stays(tags: list[tuple[str, float, float | None]], texts: list[str]) -> None:
    """Fails if a tag is lost or left, a number is misread, or anything of the prompt goes but spaces and commas."""
    whole, plain = texts[0], texts[0]
    for (name, model, clip), text in zip(tags, texts[1:], strict=False):
        whole += f"<lora:{name}:{model}{'' if clip is None else f':{clip}'}>{text}"
        plain += text
    found = parse_prompt(whole)
    assert found.tags == tuple(Tag(name, model, model if clip is None else clip) for name, model, clip in tags)
    kept = [letter for letter in plain if letter not in " \t,"]
    assert [letter for letter in found.text if letter not in " \t,"] == kept
    if not tags:
        assert found.text == whole


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a cat, <lora:x:0.7>, sitting", "a cat, sitting"),
        ("a cat <lora:x>sitting", "a cat sitting"),
        ("<lora:x:1:0.5> a cat", "a cat"),
        ("a cat,<lora:x><LORA:y:-.5>", "a cat"),
        ("a cat, (blue:1.2)\n", "a cat, (blue:1.2)\n"),
        ("<lora:x>", ""),
    ],
)
def test_commas_around_a_tag(prompt: str, text: str) -> None:
    """Fails if a removed tag leaves ``a cat, , sitting``."""
    assert parse_prompt(prompt).text == text


@pytest.mark.parametrize("inside", ["", ":1", "x:", "x:a", "x:nan", "x:inf", "x:1:2:3", "x:1:lbw=ALL"])
def test_a_strange_tag_is_an_error(inside: str) -> None:
    """Fails if a tag that cannot be followed is followed by a guess."""
    with pytest.raises(ValueError, match=r"expected <lora:name:0\.7>"):
        parse_prompt(f"a cat <lora:{inside}>")


@given(
    st.lists(st.tuples(WORDS, st.sampled_from([" ", "  ", "-", "_", " (", ") ", ". ", ", ", ",", "\n"])), max_size=6),
    st.lists(WORDS, min_size=1, max_size=3),
)
def test_a_phrase_is_found_exactly_where_its_words_stand_together(
    prompt: list[tuple[str, str]], said: list[str]
) -> None:
    """Fails where a match ignores word boundaries, order, or a phrase's end; oracle: a scan over lists of words."""
    text = "".join(word + gap for word, gap in prompt)
    listed: list[str] = []
    for word, gap in prompt:
        listed += word.casefold().replace("小", " 小 ").split() + (["|"] if "," in gap or "\n" in gap else [])
    wanted = " ".join(said).casefold().replace("小", " 小 ").split()
    found = any(listed[i : i + len(wanted)] == wanted for i in range(len(listed)))
    assert (words_of(" ".join(said)) in words_of(text)) == found


@pytest.mark.parametrize(
    ("prompt", "phrase", "there"),
    [
        ("a photo of (sks dog:1.3), outside", "sks dog", True),
        ("a photo of ((SKS)) dog", "sks dog", True),
        ("a photo of [sks|dog] here", "sks dog", False),
        ("sks, dog", "sks dog", False),
        ("risks dogs", "sks dog", False),
        ("my_dog runs", "my dog", True),
        ("mr. bean laughs", "Mr. Bean", True),
        ("hatsune miku \\(vocaloid\\)", "hatsune_miku_(vocaloid)", True),
        ("ångström", "Ångström", True),
        ("一只小狗在草地上", "小狗", True),
        ("c3-po", "c3", True),
        ("c3po", "c3", False),
    ],
)
def test_exact_phrases(prompt: str, phrase: str, there: bool) -> None:
    """Fails where punctuation, emphasis, case or another script hides a trigger, or a part of a word passes for it."""
    assert (words_of(phrase) in words_of(prompt)) == there


# Cards


def test_what_each_program_writes() -> None:
    """Fails if the trigger words of Likeness, sd-scripts, the model standard or a site's notes are not found."""
    ours = card("a", {"likeness.trigger": "sks", "likeness.class_noun": "dog", "modelspec.trigger_phrase": "sks dog"})
    assert ours.triggers == ((" sks ",),) and ours.noun == "dog"
    merged = card("a", {"likeness.trigger": "sks, ink style"})
    assert merged.triggers == ((" sks ",), (" ink style ",))
    kohya = card("a", {"ss_dataset_dirs": {"10_ohwx man": {"img_count": 9}, "reg": {}}, "ss_output_name": "BigBoat_v2"})
    assert kohya.triggers == ((" ohwx man ",),) and kohya.name_words == ("big", "boat")
    spec = card("a", {"modelspec.trigger_phrase": "tok, blue hair", "modelspec.tags": "anime,girl"})
    assert spec.triggers == ((" tok ", " blue hair "),) and spec.captions == {" anime ": 1.0, " girl ": 1.0}
    site = card("a", notes=[{"trainedWords": ["abc", 5], "model": {"tags": ["robot", None]}}])
    assert site.triggers == ((" abc ",),) and site.captions == {" robot ": 1.0}
    manager = card("a", notes=[{"civitai": {"trainedWords": ["abc"], "model": {"tags": ["robot"]}}, "tags": ["toy"]}])
    assert manager.triggers == ((" abc ",),) and manager.captions == {" robot ": 1.0, " toy ": 1.0}
    webui = card("a", notes=[{"activation text": "abc", "preferred weight": 0.6}])
    assert webui.triggers == ((" abc ",),) and webui.highest == 0.6
    assert card("a", captions(dog=4, red_ball=1)).captions == {" dog ": 1.0, " red ball ": 0.25}


STRANGE = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    *("likeness.trigger", "modelspec.trigger_phrase", "modelspec.title", "modelspec.tags", "likeness.class_noun"),
    *("ss_tag_frequency", "ss_dataset_dirs", "ss_output_name"),
]


@settings(max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(KEYS), STRANGE.map(lambda v: v if isinstance(v, str) else json.dumps(v)), max_size=4
    ),
    st.lists(
        st.dictionaries(st.sampled_from(["civitai", "trainedWords", "tags", "model", "preferred weight"]), STRANGE),
        max_size=2,
    ),
    st.text(max_size=40),
)
def test_nothing_in_a_file_breaks_the_choice(metadata: dict[str, str], notes: list[Any], prompt: str) -> None:
    """Fails if a malformed header or note is an error, or gives a score outside of 0 to 1."""
    cards = [card_of("a.safetensors", metadata, notes), card_of("b.safetensors", {"likeness.trigger": prompt[:9]})]
    found = route(parse_prompt(prompt.replace("<", "")), cards, RouteOptions(threshold=0))
    assert all(0 <= one.score <= 1 and math.isfinite(one.weight) for one in found.loras)
    assert json.loads(route_json(found))["loras"] and route_table(found)


def test_files_are_read_by_their_headers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a card is not kept while nothing changes, is when something does, or if a broken file stops all."""
    path = tmp_path / "sub" / "one.safetensors"
    base = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{base}.lora_up.weight": torch.ones(4, 2), f"{base}.lora_down.weight": torch.ones(2, 768)}
    write_safetensors(path, tensors, {"likeness.trigger": "sks"})
    read = []
    plain = route_card.read_header
    monkeypatch.setattr(route_card, "read_header", lambda path: read.append(path) or plain(path))
    first = read_card(path, "sub/one.safetensors")
    assert (first.name, first.triggers, first.architecture) == ("sub/one", ((" sks ",),), "Stable Diffusion 1")
    assert read_card(path, "sub/one.safetensors") is first and len(read) == 1
    (tmp_path / "sub" / "one.txt").write_text("two words\nthird", "utf-8")
    assert read_card(path, "sub/one.safetensors").triggers == ((" sks ",), (" two words ",), (" third ",))
    (tmp_path / "sub" / "one.json").write_text('{"preferred weight": 0.5', "utf-8")  # half a file says nothing
    assert read_card(path, "sub/one.safetensors").highest is None
    write_safetensors(path, tensors, {"likeness.trigger": "zwx"})
    os.utime(path, ns=(1, 1))
    assert read_card(path, "sub/one.safetensors").triggers[0] == (" zwx ",)
    for broken, said in ((path.read_bytes()[:20], "truncated"), (b"<html>", "web page"), (b"\xff" * 99, "starts with")):
        path.write_bytes(broken)
        assert said in read_card(path, "sub/one.safetensors").note
    (tmp_path / "old_ink.pt").write_bytes(b"x")
    assert read_card(tmp_path / "old_ink.pt", "old_ink.pt") == LoraCard("old_ink.pt", "old_ink")


# Evidence


def test_scores_are_those_of_the_formulas() -> None:
    """Fails if rarity, share or length counts otherwise than said; every number is worked out by hand."""
    cards = [
        card("one", captions(dog=4, red_ball=1) | {"likeness.trigger": "sks"}),
        card("two", captions(dog=3)),
        card("three", {"modelspec.trigger_phrase": "sks, tall hat"}),
    ]
    one, two, three = weigh(words_of("sks with a red ball and a dog"), cards)
    rare, shared = math.log(4), math.log(4 / 2)  # of three cards, one or two have it
    assert (one.trigger, two.trigger) == (1.0, 0.0) and one.found == ("sks",)
    assert three.trigger == pytest.approx(shared / (shared + rare)) and three.found == ("sks",)
    # In the prompt and in some card: dog (two cards), red, ball, red ball (one card). A card's name is a term, too.
    prompt = math.hypot(shared, rare, rare, rare)
    length = math.hypot(shared, rare / 4, rare / 4, rare / 4, rare)
    assert one.words == pytest.approx((shared**2 + 3 * rare**2 / 4) / (length * prompt))
    assert two.words == pytest.approx(shared**2 / (math.hypot(shared, rare) * prompt)) and two.terms == ("dog",)
    assert three.words == 0
    found = route(parse_prompt("sks with a red ball and a dog"), cards, RouteOptions(trigger=0.9, words=0.6, text=1.0))
    scores = {lora.card.name: lora.score for lora in found.loras}
    assert scores["one"] == pytest.approx(1 - 0.1 * (1 - 0.6 * one.words)) and scores["three"] == 0.9 * three.trigger
    assert sum(found.loras[0].parts) == pytest.approx(scores["one"]) and found.loras[0].parts[0] == pytest.approx(0.9)
    assert set(one.terms) == {"dog", "red", "ball", "red ball"} and one.cosine is None


def test_text_counts_by_how_much_nearer_than_the_others() -> None:
    """Fails if the cosine is not taken from the empty text, or the folder's mean is not what it must exceed."""
    rows = {"": [1.0, 1.0, 0.0], "boat": [3.0, 1.0, 0.0], "near": [2.0, 2.0, 0.0], "far": [1.0, 1.0, 5.0]}

    def embed(texts: Any) -> torch.Tensor:
        return torch.tensor([rows[text] for text in texts])

    cards = [card("near"), card("far")]
    near, far = weigh(words_of("a boat"), cards, embed)
    cosine = math.sqrt(0.5)
    assert near.cosine == pytest.approx(cosine) and far.cosine == pytest.approx(0)
    assert near.text == pytest.approx((cosine - cosine / 2) / (1 - cosine / 2)) and far.text == 0
    found = route(parse_prompt("a boat"), cards, RouteOptions(threshold=0.1), embed=embed)
    assert found.loras[0].score == pytest.approx(0.4 * near.text) and found.with_text
    assert f"{near.text:.2f} (cosine 0.707)" in route_table(found)
    with pytest.raises(ValueError, match="connect clip"):
        route(parse_prompt("a"), cards, RouteOptions(trigger=0, words=0))


@given(
    st.lists(st.sampled_from(["dog", "cat", "hat", "sun"]), min_size=1, max_size=4, unique=True),
    st.permutations(range(4)),
)
def test_the_one_that_says_it_all_is_the_nearest(prompt: list[str], order: list[int]) -> None:
    """Fails if another LoRA is nearer than one whose captions are the prompt, or the order of the files decides."""
    cards = [card("p", captions(dog=2)), card("q", captions(dog=2, cat=2)), card("r", captions(hat=1)), card("s")]
    words = words_of(", ".join(prompt))
    same = weigh(words, [*cards, LoraCard("1.pt", "1", captions=dict.fromkeys(phrases_of(words), 0.5))])
    assert same[-1].words == pytest.approx(1) == max(1, *(one.words for one in same))
    found = weigh(words, cards)
    assert [weigh(words, [cards[i] for i in order])[order.index(j)] for j in range(4)] == found


# The choice


def three(**options: Any) -> tuple[list[LoraCard], RouteOptions]:
    cards = [card(f"style/{word}", {"likeness.trigger": word}) for word in ("ink", "oil", "wax")]
    return cards, RouteOptions(**options)


def weights(found: Route) -> dict[str, float]:
    return {one.card.name: one.weight for one in found.loras}


def test_the_total_is_shared_out() -> None:
    """Fails if the weights do not add up to the total, the best is left out, or one has more than its limit."""
    cards, options = three()
    found = route(parse_prompt("ink and wax"), cards, options)
    assert weights(found) == {"style/ink": 0.5, "style/wax": 0.5, "style/oil": 0}
    assert [one.why for one in found.loras] == ["chosen", "chosen", "score below 0.3"]
    limited = route(parse_prompt("ink and wax"), cards, options, limits={"style/ink.safetensors": 0.2})
    assert weights(limited)["style/ink"] == 0.2
    one = route(parse_prompt("ink, wax"), cards, RouteOptions(most=1, total=3.0))
    assert weights(one) == {"style/ink": 1.0, "style/wax": 0, "style/oil": 0} and "best 1" in one.loras[1].why
    noted = [card("a", {"likeness.trigger": "ink"}, notes=[{"preferred weight": "0.35"}])]
    assert weights(route(parse_prompt("ink"), noted, options)) == {"a": 0.35}
    assert not route(parse_prompt(""), cards, options).chosen and not route(parse_prompt("x"), [], options).loras
    with pytest.raises(ValueError, match=r"style/ink.*more than 0"):
        route(parse_prompt("ink"), cards, options, limits={"style/ink.safetensors": -1})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.floats(0.05, 5), st.integers(0, 6))
def test_never_more_than_the_total(shares: list[float], total: float, most: int) -> None:
    """Fails if rounding or a limit lets the weights exceed the total, or more are chosen than may be."""
    cards = [
        LoraCard(f"{i}.safetensors", str(i), captions={" dog ": share, " cat ": 1.0}) for i, share in enumerate(shares)
    ]
    found = route(parse_prompt("dog"), cards, RouteOptions(total=total, most=most, threshold=0.01))
    assert math.fsum(one.weight for one in found.chosen) <= total * (1 + 1e-9) + 1e-9 and len(found.chosen) <= most
    scores = [one.score for one in found.loras if one.chosen]
    assert scores == sorted(scores, reverse=True)


def test_the_prompts_own_loras_come_first() -> None:
    """Fails if <lora:…> does not decide, does not take its part of the total, or 0 does not keep a LoRA out."""
    cards, _ = three()
    files = [one.file for one in cards]

    def run(text: str, total: float = 1.0) -> Route:
        prompt = parse_prompt(text)
        return route(prompt, cards, RouteOptions(total=total), named=named_files(prompt.tags, files, {}))

    found = run("ink <lora:wax:0.7:0.2>")
    assert weights(found) == {"style/wax": 0.7, "style/ink": 0.3, "style/oil": 0} and found.prompt == "ink"
    assert (found.loras[0].clip, found.loras[0].why, found.loras[1].clip) == (0.2, "named in the prompt", 0.3)
    full = run("ink <lora:style/wax:-1.5>")
    assert weights(full) == {"style/wax": -1.5, "style/ink": 0, "style/oil": 0} and "have all" in full.loras[1].why
    out = run("ink, wax <lora:ink:0>")
    assert weights(out) == {"style/wax": 1.0, "style/ink": 0, "style/oil": 0}
    assert out.loras[1].why == "switched off in the prompt"
    assert select_files(route_files(found), files) == (("style/wax.safetensors", 0.7), ("style/ink.safetensors", 0.3))


def test_a_tag_names_one_file_of_the_list() -> None:
    """Fails if a tag reaches a file that the host does not list, or one of two of the same name is taken by chance."""
    files = ["ink.safetensors", "a\\wax.safetensors", "b/wax.safetensors", "b/oil v1.safetensors"]
    tag = {name: Tag(name, 1.0, 1.0) for name in ("ink", "ink.safetensors", "a/wax", "b\\wax", "oil v1", "Foo")}
    assert (
        set(named_files([tag["ink"]], files, {})) == set(named_files([tag["ink.safetensors"]], files, {})) == {files[0]}
    )
    assert list(named_files([tag["a/wax"], tag["b\\wax"]], files, {})) == files[1:3]
    assert list(named_files([tag["oil v1"], tag["Foo"]], files, {files[0]: "Foo"})) == [files[3], files[0]]
    for name, said in (
        ("wax", "several.*a/wax or b/wax"),
        ("inc", "did you mean ink"),
        ("aol v1", "b/oil v1"),
        ("zzzzzz", "4 LoRAs"),
    ):
        with pytest.raises(ValueError, match=said):
            named_files([Tag(name, 1.0, 1.0)], files, {})
    for name in ("../ink", "/ink", "b/../ink", "C:\\ink", "b", "", "b/"):
        with pytest.raises(ValueError, match="no file in the folder"):
            named_files([Tag(name, 1.0, 1.0)], files, {})


def test_loras_of_another_model_are_left_out() -> None:
    """Fails if a LoRA that cannot fit is chosen, one that may fit is not, or the table does not say why."""
    cards, options = [], RouteOptions()
    for name, architecture in (("a", "Stable Diffusion 1"), ("b", "Stable Diffusion XL"), ("c", "unknown")):
        cards.append(card(name, {"likeness.trigger": "sks"}, architecture=architecture))
    cards.append(card("d", {"likeness.trigger": "sks"}, trouble="d is truncated"))
    found = route(parse_prompt("sks"), cards, options, architecture="Stable Diffusion 1")
    assert weights(found) == {"a": 0.5, "c": 0.5, "b": 0, "d": 0}
    assert [one.why for one in found.loras[2:]] == ["for Stable Diffusion XL", "d is truncated"]
    assert "| for Stable Diffusion XL |" in route_table(found)
    assert weights(route(parse_prompt("sks"), cards, options))["b"] > 0
    for name, said in (("b", "for Stable Diffusion XL"), ("d", "truncated")):
        prompt = parse_prompt(f"<lora:{name}>")
        named = named_files(prompt.tags, [one.file for one in cards], {})
        with pytest.raises(ValueError, match=f"names the LoRA {name}.*{said}"):
            route(prompt, cards, options, named=named, architecture="Stable Diffusion 1")
        off = {file: Tag(name, 0.0, 0.0) for file in named}
        assert not route(parse_prompt("x"), cards, options, named=off, architecture="Stable Diffusion 1").chosen


def test_table_json_and_picture() -> None:
    """Fails if the picture shows something else than the scores, or odd names break the table or the picture."""
    cards = [card("a|b$x_{", {"likeness.trigger": "ink", "modelspec.title": "x\n| y"}), card("other")]
    found = route(parse_prompt("ink"), cards, RouteOptions())
    plot = route_plot(found)
    assert plot.shape == (1, 600, 1000, 3) and plot.dtype == torch.float32 and 0 <= plot.min() < plot.max() <= 1
    assert torch.equal(plot, route_plot(found))
    assert not torch.equal(plot, route_plot(route(parse_prompt("other"), cards, RouteOptions())))
    route_plot(route(parse_prompt("ink"), [], RouteOptions()))
    row = next(line for line in route_table(found).splitlines() if "chosen" in line)
    assert row.startswith("| a\\|b$x_{ | 1 | 0.80 | 1.00 (ink) |")
    assert "score = 1 − (1 − 0.8 · trigger)(1 − 0.7 · words); " in route_table(found)
    (first, second) = json.loads(route_json(found))["loras"]
    assert first["chosen"] and first["triggers"] == ["ink"] and second["why"] == "score below 0.3"
    assert route_files(found) == "a|b$x_{.safetensors 1"
    many = [card(f"lora {i}", {"likeness.trigger": "ink"}) for i in range(100)]
    assert "and 40 more" in route_table(route(parse_prompt("ink"), many, RouteOptions()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"total": 0},
        {"total": math.inf},
        {"threshold": 1.5},
        {"most": -1},
        {"text": -1},
        {"trigger": math.nan},
        {"words": 1.1},
    ],
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    """Fails if nonsense is routed with."""
    with pytest.raises(ValueError, match="expected"):
        RouteOptions(**wrong)


def test_phrases() -> None:
    """Fails if a list of tags is not taken apart at its commas."""
    assert phrases_of("a b,, c_d ,") == (" a b ", " c d ") and phrases_of(" ,") == ()
