from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.trainers.captions import CaptionRules, caption_list, rewritten, varied, with_captions
from likeness.trainers.dataset import Picture, PictureSet
from likeness.trainers.randomness import generator

TAGS = st.lists(st.text("abcdefgh ", min_size=1, max_size=6).filter(lambda tag: tag.strip()), max_size=8)


def picture_set(*captions: str, trigger: str = "sks", class_noun: str = "dog") -> PictureSet:
    pixels = torch.zeros(8, 8, 3, dtype=torch.uint8)
    pictures = [
        Picture(pixels, None, caption, f"{n}.png", (8, 8), (0, 0), (8, 8)) for n, caption in enumerate(captions)
    ]
    return PictureSet(tuple(pictures), 1, False, trigger, class_noun)


def captions(pictures: PictureSet) -> list[str]:
    return [picture.caption for picture in pictures.pictures]


@pytest.mark.parametrize(
    ("place", "caption", "expected"),
    [
        ("as it is", "a dog on grass", "a dog on grass"),
        ("front", "a dog on grass", "sks, a dog on grass"),
        ("front", "SKS, a dog", "SKS, a dog"),
        ("front", "a sks dog", "sks, a sks dog"),
        ("front", "", "sks"),
        ("front", "sksy thing", "sks, sksy thing"),
        ("if missing", "a sks dog", "a sks dog"),
        ("if missing", "a dog", "sks, a dog"),
        ("before class", "a dog and a Dog, hotdog", "a sks dog and a Dog, hotdog"),
        ("before class", "a sks dog", "a sks dog"),
        ("before class", "a cat", "sks, a cat"),
        ("replace class", "a dog and a Dog, hotdog", "a sks and a sks, hotdog"),
        ("replace class", "a sks dog", "a sks"),
        ("replace class", "a sks", "a sks"),
        ("replace class", "on grass", "sks, on grass"),
    ],
)
def test_the_trigger_goes_where_it_is_told(place: str, caption: str, expected: str) -> None:
    """Fails if the trigger is missing, doubled, or put into the middle of another word."""
    assert captions(with_captions(picture_set(caption), CaptionRules(trigger=place))) == [expected]


def test_what_is_found_is_replaced_line_by_line() -> None:
    """Fails if texts are paired wrongly, taken for expressions, or leave empty tags behind."""
    rules = CaptionRules(find=("1girl", "red.hat", "", "x"), replacement=("{trigger} {class}",))
    got = with_captions(picture_set("1girl, red.hat, outdoors", "redohat , 1girl", "a dog ,on grass"), rules)
    assert captions(got) == ["sks dog, outdoors", "redohat, sks dog", "a dog ,on grass"]


def test_prefix_and_suffix_stay_outside() -> None:
    """Fails if they are shuffled, dropped, not filled in, or a comma gets a space before it."""
    rules = CaptionRules(
        trigger="front", prefix="a photo of", suffix=", {class} portrait", shuffle=True, tag_dropout=1.0, keep_tags=0
    )
    (picture,) = with_captions(picture_set("red, blue, green"), rules).pictures
    assert picture.caption == "a photo of sks, red, blue, green, dog portrait"
    assert picture.variants == ("a photo of sks, dog portrait",)
    with pytest.raises(ValueError, match=r"prefix names \{name\}"):
        with_captions(picture_set("a"), CaptionRules(prefix="{name}"))


@settings(max_examples=60, deadline=None)
@given(TAGS, st.integers(0, 10), st.integers(0, 2**32))
def test_shuffling_keeps_every_tag(tags: list[str], keep: int, seed: int) -> None:
    """Fails if a tag is lost or doubled, or one of the first that are to stay moves."""
    rules = CaptionRules(shuffle=True, keep_tags=keep)
    got = [tag for tag in varied(",".join(tags), rules, "sks", generator(seed, "x")).split(", ") if tag]
    clean = [" ".join(tag.split()) for tag in tags]
    assert sorted(got) == sorted(clean)
    assert got[:keep] == clean[:keep]


@settings(max_examples=60, deadline=None)
@given(TAGS, st.integers(0, 4), st.floats(0, 1), st.integers(0, 2**32))
def test_dropping_keeps_order_and_the_trigger(tags: list[str], keep: int, rate: float, seed: int) -> None:
    """Fails if what is left is in another order, or the trigger or a kept tag is dropped."""
    clean = [" ".join(tag.split()) for tag in tags]
    clean.insert(len(clean) // 2, "a sks thing")
    got = varied(", ".join(clean), CaptionRules(keep_tags=keep, tag_dropout=rate), "sks", generator(seed, "x"))
    left = [tag for tag in got.split(", ") if tag]
    rest = iter(clean)
    assert all(tag in rest for tag in left)  # a subsequence
    assert "a sks thing" in left and left[:keep] == clean[:keep]
    if rate == 0:
        assert left == clean


def test_dropout_rate_and_shuffle_are_fair() -> None:
    """Fails if tags are dropped more or less often than asked, or orders are not equally likely (5 deviations)."""
    drawn = with_captions(picture_set("a, b, c"), CaptionRules(tag_dropout=0.3, variants=2000)).pictures[0].variants
    count = sum(len([tag for tag in variant.split(", ") if tag]) for variant in drawn)
    assert abs(count - 6000 * 0.7) < 5 * (6000 * 0.3 * 0.7) ** 0.5
    orders = with_captions(picture_set("a, b, c"), CaptionRules(shuffle=True, variants=3000)).pictures[0].variants
    for order in set(orders):
        assert abs(orders.count(order) - 500) < 5 * (3000 / 6 * 5 / 6) ** 0.5
    assert len(set(orders)) == 6


def test_the_seed_decides() -> None:
    """Fails if variants differ between two calls, are alike for all pictures, or ignore the seed."""
    rules = CaptionRules(shuffle=True, variants=6)
    pictures = picture_set("a, b, c, d, e", "a, b, c, d, e")
    one, two = with_captions(pictures, rules), with_captions(pictures, rules)
    assert [p.variants for p in one.pictures] == [p.variants for p in two.pictures]
    assert one.pictures[0].variants != one.pictures[1].variants
    other = with_captions(pictures, dataclasses.replace(rules, seed=1))
    assert other.pictures[0].variants != one.pictures[0].variants
    assert one.pictures[0].caption == "a, b, c, d, e"


def test_nothing_to_draw_gives_no_variants() -> None:
    """Fails if captions that are certain are encoded many times over."""
    got = with_captions(picture_set("a, b"), CaptionRules(trigger="front", variants=8))
    assert got.pictures[0].variants == () and got.pictures[0].caption == "sks, a, b"


def test_two_in_a_row() -> None:
    """Fails if a second change forgets the first's variants, or all sets of a combination but one."""
    shuffled = with_captions(picture_set("a, b, c, d"), CaptionRules(shuffle=True, variants=4))
    dressed = with_captions(shuffled, CaptionRules(prefix="x"))
    assert dressed.pictures[0].variants == tuple(f"x {variant}" for variant in shuffled.pictures[0].variants)
    bare = with_captions(picture_set("a, b"), CaptionRules(tag_dropout=1.0, keep_tags=1))
    again = with_captions(bare, CaptionRules(shuffle=True, variants=3))
    assert again.pictures[0].caption == "a, b" and again.pictures[0].variants == ("a",) * 3
    one, two = picture_set("a dog"), picture_set("a cat", trigger="zwx", class_noun="cat")
    both = PictureSet(one.pictures + two.pictures, 1, False, "sks", "dog", parts=(one, two))
    changed = with_captions(both, CaptionRules(trigger="before class"))
    assert captions(changed) == ["a sks dog", "a zwx cat"]
    assert [captions(part) for part in changed.parts] == [["a sks dog"], ["a zwx cat"]]


def test_the_list_shows_captions_and_variants() -> None:
    """Fails if a caption is missing in the text, or hundreds of variants fill it."""
    text = caption_list(with_captions(picture_set("a, b, c, d", ""), CaptionRules(shuffle=True, variants=50)))
    lines = text.splitlines()
    assert lines[0] == "0.png: a, b, c, d" and "1.png: (empty caption)" in lines
    assert "more variants" in text and len(lines) < 12


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (CaptionRules(trigger="back"), "'back'"),
        (CaptionRules(shuffle=True, separator=" "), "separator"),
        (CaptionRules(tag_dropout=1.1), "from 0 to 1"),
        (CaptionRules(variants=0), "variants is 0"),
        (CaptionRules(replacement=("a",)), "1 texts to put in and 0 to find"),
    ],
)
def test_rules_that_cannot_be_followed(rules: CaptionRules, message: str) -> None:
    """Fails if a wrong rule passes in silence."""
    with pytest.raises(ValueError, match=message):
        with_captions(picture_set("a"), rules)


def test_a_trigger_must_be_there_to_be_placed() -> None:
    """Fails if an empty trigger word is put in front as a bare comma."""
    with pytest.raises(ValueError, match="no trigger word"):
        with_captions(picture_set("a", trigger=" "), CaptionRules(trigger="front"))
    assert rewritten("a", CaptionRules(), "", "") == "a"
