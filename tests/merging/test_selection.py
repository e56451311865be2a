"""Which files a text chooses, and with what weights."""

from __future__ import annotations

import pytest

from likeness.merging.selection import parse_weights, select_files

NAMES = ("ink.safetensors", "style/ink.safetensors", "style/old oil 2.safetensors", "style\\wood.pt", "subject/cat.pt")


def test_weights() -> None:
    """Fails if one number is not for all, a separator is missed, or a wrong count is filled up in silence."""
    assert parse_weights("", 2) == (1.0, 1.0) and parse_weights(" .5 ", 3) == (0.5,) * 3
    assert parse_weights("1, 0.8;-0.3\n2", 4) == (1.0, 0.8, -0.3, 2.0) and parse_weights("1e-1", 1) == (0.1,)
    with pytest.raises(ValueError, match="2 weights for 3 LoRAs"):
        parse_weights("1 2", 3)
    for word in ("nan", "inf", "x", "1.2.3"):
        with pytest.raises(ValueError, match=f"'{word}'"):
            parse_weights(f"1 {word}", 2)


def test_files() -> None:
    """Fails if a folder, pattern, missing ending or backslash is not understood, a name's own last word is taken for a
    weight, or a file is merged twice."""
    assert select_files("# all\n\n", NAMES) == ()
    assert select_files("ink", NAMES) == (("ink.safetensors", 1.0),)
    assert select_files("style/old oil 2\nstyle/old oil 2.safetensors -.5", NAMES) == ((NAMES[2], 1.0),)
    assert select_files("style\\old oil 2 -0.5", NAMES) == ((NAMES[2], -0.5),)
    assert select_files("style/ink 0.6\nstyle/ 2", NAMES) == ((NAMES[1], 0.6), (NAMES[2], 2.0), (NAMES[3], 2.0))
    assert [name for name, _ in select_files("*.pt", NAMES)] == [NAMES[3], NAMES[4]]
    assert len(select_files("* 0.1", NAMES)) == len(select_files(".", NAMES)) == len(NAMES)


def test_a_line_that_finds_nothing() -> None:
    """Fails if a misspelt file is left out in silence, or the message does not help to find it."""
    with pytest.raises(ValueError, match=r"line 2 of the files: 'style/wod' .*did you mean style/wood"):
        select_files("ink\nstyle/wod 0.5", NAMES)
    with pytest.raises(ValueError, match="there are 5 LoRAs"):
        select_files("../../../etc/passwd", NAMES)
