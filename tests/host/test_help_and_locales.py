"""Help pages and translations say what the nodes' schemas say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from likeness.devtools.locales import english

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = sorted(path.name for path in (ROOT / "locales").iterdir())
ROW = re.compile(r"^\| `(\w+)` \|([^|]*)\|", re.MULTILINE)


def ours(object_info: dict[str, Any]) -> dict[str, Any]:
    found = {name: schema for name, schema in object_info.items() if name.startswith("Likeness")}
    assert found
    return found


def rows(page: str, heading: str) -> dict[str, str]:
    """name -> second column, of the table under a heading."""
    section = page.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return {name: second.strip() for name, second in ROW.findall(section)}


def test_every_input_is_explained_with_its_default(object_info: dict[str, Any]) -> None:
    """Fails when an input is added, renamed or gets another default, and the help page is forgotten."""
    for name, schema in ours(object_info).items():
        page = (ROOT / "web" / "docs" / name / "en.md").read_text("utf-8")
        assert page.startswith(f"# {schema['display_name']}\n")
        said = rows(page, "Inputs")
        expected = {}
        for group in ("required", "optional"):
            for input_, spec in (schema["input"].get(group) or {}).items():
                options = spec[1] if len(spec) > 1 else {}
                offered = options.get("options") or (spec[0] if isinstance(spec[0], list) else [])
                default = options.get("default", offered[0] if offered and input_ != "lora_name" else None)
                expected[input_] = "" if default is None else "*(empty)*" if default == "" else f"`{default}`"
        assert said == expected, name
        assert list(rows(page, "Outputs")) == schema["output_name"], name
        for heading in ("When it complains", "Example"):
            assert f"\n## {heading}\n" in page, name


def test_english_is_what_the_schemas_say(object_info: dict[str, Any]) -> None:
    """Fails when a tooltip changed and the file did not: run python devtools/start.py locales against a server."""
    written = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text("utf-8"))
    assert written == english(object_info)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_translation_covers_every_text(language: str, object_info: dict[str, Any]) -> None:
    """Fails when a node or input has no text in a language, or a text that vue-i18n would read as a format."""
    written = json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text("utf-8"))
    reference = english(object_info)

    def compare(one: Any, other: Any, where: str) -> None:
        if isinstance(other, dict):
            assert set(one) == set(other), f"{language} {where}"
            for key in other:
                compare(one[key], other[key], f"{where}.{key}")
            return
        assert one.strip() or not other, f"{language} {where} is empty"
        assert not re.search(r"[{}@|]", re.sub(r"\{'[{}@|]'\}", "", one)), f"{language} {where} needs escapes: {one}"
        assert one.count("{'{'}") == other.count("{'{'}"), f"{language} {where}: a placeholder is missing"

    compare(written, reference, "nodeDefs")


def test_every_language_has_the_same_general_texts() -> None:
    """Fails when a language misses a data type's name."""
    shapes = {
        language: {key: sorted(value) for key, value in json.loads(path.read_text("utf-8")).items()}
        for language in LANGUAGES
        for path in [ROOT / "locales" / language / "main.json"]
    }
    assert all(shape == shapes["en"] for shape in shapes.values()), shapes
