"""The split, the captions and the true pictures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from likeness.tinyworld import truth
from likeness.tinyworld.dataset import caption, composite_batch, draw_caption
from likeness.tinyworld.pictures import composite
from likeness.tinyworld.split import STYLE_WORDS, STYLES, library_subjects, load_split, make_split, save_split


def test_nothing_held_out_was_seen() -> None:
    """Fails if a subject or a style is on both sides, or if the sizes that the figures rest on shrink."""
    split = load_split()
    held, seen, other = map(set, (split.held_out_subjects, split.pretrain_subjects, split.other_subjects))
    assert not held & seen and not held & other and not seen & other
    assert not set(split.held_out_styles) & set(split.pretrain_styles)
    assert len(held) >= 40 and len(seen) >= 250
    assert len(split.held_out_styles) == 2 and len(split.pretrain_styles) == 6
    assert set(split.held_out_styles) | set(split.pretrain_styles) == set(STYLES)


def test_a_held_out_name_gives_nothing_away() -> None:
    """Fails if a held-out subject shares a word with another subject, whose caption would then teach it."""
    split = load_split()
    words = Counter(word for name in split.class_of for word in set(name.split("-")))
    for name in split.held_out_subjects:
        assert all(words[word] == 1 for word in name.split("-")), name


def test_the_split_is_the_one_that_the_seed_gives(tmp_path: Path) -> None:
    """Fails if the record was edited by hand, or if saving and loading change it."""
    split = load_split()
    assert make_split(split.class_of) == split
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split


def test_too_few_subjects_are_refused() -> None:
    """Fails if a small table of subjects silently gives a smaller bench."""
    with pytest.raises(ValueError, match="cannot give 45 held out"):
        make_split({f"thing{i}": "object" for i in range(50)})


@pytest.mark.parametrize("background", [(255, 255, 255), (214, 69, 65)])
@given(
    picture=hnp.arrays(np.uint8, (5, 4, 4)),
)
@settings(max_examples=40, deadline=None)
def test_composite_is_pillows(background: tuple[int, int, int], picture: np.ndarray) -> None:
    """Oracle: Pillow's own alpha_composite over an opaque colour. Fails with alpha or colour channels swapped."""
    over = Image.alpha_composite(Image.new("RGBA", (4, 5), (*background, 255)), Image.fromarray(picture))
    np.testing.assert_allclose(composite(picture, background) * 255, np.asarray(over)[..., :3], atol=1.01)


def test_shifts_and_flips_move_the_picture() -> None:
    """Oracle: one marked pixel, followed by hand. Fails if axes are swapped or the flip comes after the shift."""
    rgba = np.zeros((1, 64, 64, 4), np.uint8)
    rgba[0, 10, 20] = (255, 0, 0, 255)
    batch = composite_batch(rgba, [(0, 0, 0)], [True], np.array([[3, -2]]))
    assert batch[0, 0].nonzero().tolist() == [[13, 63 - 20 - 2]]
    with pytest.raises(ValueError, match="4 pixels"):
        composite_batch(rgba, [(0, 0, 0)], [False], np.array([[5, 0]]))


def test_captions_read_as_documented() -> None:
    """Fails if the words that the model card promises are not those of the captions."""
    assert caption("hot dog", "twemoji", None) == "a bold picture of a hot dog"
    assert caption("cat", "openmoji", "blue", 1) == "cat, outlined style on a blue background"
    assert caption("cat", None, None, 2) == "cat"


@given(st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_drawn_captions_never_name_a_held_out_style(seed: int) -> None:
    """Fails if pretraining could read a word of what it must not know."""
    split = load_split()
    text = draw_caption(np.random.default_rng(seed), "red-apple", "food", "noto", "red")
    assert not any(STYLE_WORDS[style] in text for style in split.held_out_styles)
    assert "red apple" in text or "food" in text


def test_shipped_pictures_are_whole_and_small() -> None:
    """Fails if the file outgrows its 3 MB, or if a picture that a test needs is not in it."""
    assert truth.ARCHIVE.stat().st_size < 3_000_000
    pictures, split = truth.held_out_pictures(), load_split()
    assert all((name, style) in pictures for name in split.held_out_subjects for style in STYLES)
    assert all((name, style) in pictures for name in split.pretrain_subjects for style in split.held_out_styles)
    assert set(pictures) == set(truth.shipped(split))
    assert all(p.shape == (64, 64, 4) and p[..., 3].max() > 0 for p in pictures.values())


def test_a_library_can_be_taught_of_what_ships(tmp_path: Path) -> None:
    """Fails if a subject of the library was seen in pretraining, or a known style's pictures are missing."""
    split = load_split()
    library = library_subjects(split)
    assert len(library) == 12 and not set(library) & {*split.pretrain_subjects, *split.held_out_subjects}
    assert len(truth.write_references(library[0], tmp_path / "subject")) == 5
    for style in split.pretrain_styles:
        assert len(truth.write_style(style, tmp_path / style)) == 24


def test_archive_is_lossless_and_repeatable(tmp_path: Path) -> None:
    """Oracle: the pictures that went in. Fails with lossy compression, or a time stamp in the file."""
    rng = np.random.default_rng(0)
    pictures = {("cat", style): rng.integers(0, 256, (64, 64, 4), np.uint8) for style in STYLES[:3]}
    for name in ("one.zip", "two.zip"):
        truth.write_archive(pictures, tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    for pair, back in truth.held_out_pictures(tmp_path / "one.zip").items():
        seen = pictures[pair][..., 3] > 0
        np.testing.assert_array_equal(back[seen], pictures[pair][seen])


def test_references_leave_one_style_for_the_test(tmp_path: Path) -> None:
    """Fails if the style that tests ask for is among the references."""
    written = truth.write_references("panda", tmp_path)
    assert len(written) == 5 and not any(truth.HELD_BACK_STYLE + "." in path.name for path in written)
    assert all(path.with_suffix(".txt").read_text().strip().endswith("picture of a sks") for path in written)
    with pytest.raises(ValueError, match="no true picture of 'pandaa'"):
        truth.write_references("pandaa", tmp_path)
    assert torch.from_numpy(np.asarray(Image.open(written[0]))).shape == (64, 64, 3)


def test_pictures_in_a_style_name_what_they_show_and_not_the_style(tmp_path: Path) -> None:
    """Fails if captions give the held-out style's word away, or all pictures show one thing."""
    written = truth.write_style("noto-v1", tmp_path, 12)
    captions = [path.with_suffix(".txt").read_text() for path in written]
    assert len({path.read_bytes() for path in written}) == len(set(captions)) == 12
    assert all(text.startswith("a sks picture of a ") and "retro" not in text for text in captions)
    with pytest.raises(ValueError, match="no true picture"):
        truth.write_style("notto", tmp_path)
