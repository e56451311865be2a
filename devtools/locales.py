"""locales/en/nodeDefs.json from the nodes' own schemas: what translators copy and translate.

    python devtools/start.py locales http://127.0.0.1:8188

The page reads these texts with vue-i18n, in which braces, @ and | have a meaning: they are written as {'{'} and so on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..experiments.client import Client
from .paths import ROOT

PREFIX = "Likeness"
TARGET = ROOT / "locales" / "en" / "nodeDefs.json"


def escaped(text: str) -> str:
    """`text` as a vue-i18n message that shows exactly `text`."""
    return re.sub(r"[{}@|]", lambda match: f"{{'{match[0]}'}}", text)


def english(object_info: Mapping[str, Any]) -> dict[str, Any]:
    """The nodeDefs of this pack's nodes in /object_info, in the order of their names."""
    return {name: _node(schema) for name, schema in sorted(object_info.items()) if name.startswith(PREFIX)}


def _node(schema: Mapping[str, Any]) -> dict[str, Any]:
    inputs: dict[str, Any] = {}
    for group in ("required", "optional"):
        for name, spec in (schema["input"].get(group) or {}).items():
            options = spec[1] if len(spec) > 1 else {}
            inputs[name] = {"name": escaped(name), "tooltip": escaped(options.get("tooltip") or "")}
    tooltips = schema.get("output_tooltips") or [""] * len(schema["output"])
    outputs = {
        str(index): {"name": escaped(name), "tooltip": escaped(tooltip or "")}
        for index, (name, tooltip) in enumerate(zip(schema["output_name"], tooltips, strict=True))
    }
    return {
        "display_name": escaped(schema["display_name"]),
        "description": escaped(schema["description"]),
        "inputs": inputs,
        "outputs": outputs,
    }


def main(arguments: list[str]) -> int | str:
    """Write the texts; `arguments`: the server's address."""
    found = english(Client(arguments[0] if arguments else "http://127.0.0.1:8188").object_info())
    if not found:
        return "that server has no node of this pack"
    TARGET.write_text(json.dumps(found, ensure_ascii=False, indent=2) + "\n", "utf-8")
    print(f"{TARGET.relative_to(ROOT)}: {len(found)} nodes")
    return 0
