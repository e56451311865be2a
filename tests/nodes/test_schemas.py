"""Node ids, input ids, types, defaults and output order are what saved workflows rest on: they may only grow."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SNAPSHOT = Path(__file__).with_name("schemas.json")
LISTED_BY_THE_HOST = {"sampler_name", "scheduler", "lora_name", "hypernetwork"}


@pytest.fixture(scope="module")
def nodes(comfy: SimpleNamespace) -> list[Any]:
    """What the host gets from the pack's entry point."""
    import likeness

    extension = asyncio.run(likeness.comfy_entrypoint())
    return asyncio.run(extension.get_node_list())


def contract(schema: Any) -> dict[str, Any]:
    """The part of a schema that a saved workflow depends on."""
    inputs = []
    for one in schema.inputs:
        about: dict[str, Any] = {"id": one.id, "type": str(one.get_io_type()), "optional": bool(one.optional)}
        if getattr(one, "default", None) is not None:
            about["default"] = one.default
        if getattr(one, "options", None) is not None and one.id not in LISTED_BY_THE_HOST:
            about["options"] = list(one.options)
        inputs.append(about)
    outputs = [{"name": one.display_name, "type": str(one.get_io_type())} for one in schema.outputs]
    return {"category": schema.category, "inputs": inputs, "outputs": outputs}


def test_schemas_are_those_of_the_snapshot(nodes: list[Any]) -> None:
    """A renamed, moved, removed or retyped input or output would break workflows that users saved.

    After a change that only adds, run with LIKENESS_UPDATE_SCHEMAS=1 and read the difference.
    """
    found = {}
    for node in nodes:
        schema = node.define_schema()
        schema.finalize()  # as the host does
        schema.validate()
        found[schema.node_id] = contract(schema)
    if os.environ.get("LIKENESS_UPDATE_SCHEMAS"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    assert found == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_ids_and_categories_are_the_packs_own(nodes: list[Any]) -> None:
    """An id without the prefix could collide with another pack's; a category elsewhere would hide the node."""
    for node in nodes:
        schema = node.define_schema()
        assert schema.node_id == node.__name__
        assert schema.node_id.startswith("Likeness")
        assert schema.category.startswith("Likeness/")
        assert schema.description


def test_every_input_has_a_tooltip(nodes: list[Any]) -> None:
    """An input without one would leave the user guessing."""
    for node in nodes:
        schema = node.define_schema()
        missing = [one.id for one in schema.inputs if not one.tooltip]
        assert not missing, f"{schema.node_id}: {missing}"


def test_root_exports_the_entry_point_alone() -> None:
    """NODE_CLASS_MAPPINGS would make the host ignore comfy_entrypoint."""
    import likeness

    assert likeness.WEB_DIRECTORY == "./web"
    assert not hasattr(likeness, "NODE_CLASS_MAPPINGS")
