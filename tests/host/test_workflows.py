"""Every shipped workflow against the nodes of a running server."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from likeness.experiments.workflow import to_api, widget_values

FOLDER = Path(__file__).resolve().parents[2] / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.json"))
NOTES = ("Note", "MarkdownNote")
FILES = (
    "ckpt_name",
    "lora_name",
    "unet_name",
    "clip_name1",
    "clip_name2",
    "vae_name",
)  # what a combo offers depends on the user's files


def specs(schema: dict[str, Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(input, its type, its options); a combo's type is the list of what it offers."""
    for group in ("required", "optional"):
        for name, spec in (schema["input"].get(group) or {}).items():
            options = spec[1] if len(spec) > 1 else {}
            yield name, options.get("options", []) if spec[0] == "COMBO" else spec[0], options


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(json.loads(request.param.read_text("utf-8")))


def test_there_are_workflows() -> None:
    """The tests below would pass on an empty folder."""
    assert {path.stem for path in WORKFLOWS} >= {"quickstart", "train_your_subject", "use_a_lora"}


def test_every_node_is_known_and_has_a_place(workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
    """Fails on a node that was renamed, on a node id used twice, and on nodes that lie on top of each other."""
    nodes = workflow["nodes"]
    assert workflow["version"] == 0.4
    assert {node["type"] for node in nodes} - set(NOTES) <= set(object_info)
    assert len({node["id"] for node in nodes}) == len(nodes)
    assert workflow["last_node_id"] >= max(node["id"] for node in nodes)
    boxes = {}
    for node in nodes:
        height = 0 if node["flags"].get("collapsed") else node["size"][1]
        boxes[node["id"]] = (*node["pos"], node["pos"][0] + node["size"][0], node["pos"][1] + height)
    for one, (left, top, right, bottom) in boxes.items():
        for other, (left2, top2, right2, bottom2) in boxes.items():
            apart = right <= left2 or right2 <= left or bottom + 30 <= top2 or bottom2 + 30 <= top  # 30: a title bar
            assert one == other or apart, f"nodes {one} and {other} overlap"


def test_both_ends_of_every_link_agree(workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
    """Fails on a link whose slot has moved or changed its type: the page would drop it or wire something else."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, origin, slot, target, target_slot, kind in workflow["links"]:
        output, input_ = nodes[origin]["outputs"][slot], nodes[target]["inputs"][target_slot]
        schema = object_info[nodes[origin]["type"]]
        assert (output["name"], output["type"]) == (schema["output_name"][slot], schema["output"][slot])
        assert link in output["links"] and input_["link"] == link
        declared = {name: type_ for name, type_, _ in specs(object_info[nodes[target]["type"]])}[input_["name"]]
        assert declared in ("*", kind) and output["type"] == kind, f"link {link}: {kind} into {declared}"
    claimed = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
    assert sorted(claimed) == sorted(link[0] for link in workflow["links"])


def test_widgets_are_within_what_the_nodes_allow(workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
    """Fails when values have slipped by one widget, or an option or range has changed."""
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        schema = object_info[node["type"]]
        values = widget_values(node, schema)
        for name, kind, options in specs(schema):
            if name not in values:
                continue
            value, where = values[name], f"{node['type']}.{name} = {values[name]!r}"
            if isinstance(kind, list):
                assert name in FILES or value in kind, where
            elif kind in ("INT", "FLOAT"):
                assert isinstance(value, (int, float)) and not isinstance(value, bool), where
                assert options.get("min", -math.inf) <= value <= options.get("max", math.inf), where
                assert kind == "FLOAT" or value == int(value), where
            else:
                assert isinstance(value, bool if kind == "BOOLEAN" else str), where


def test_it_becomes_a_graph_that_the_server_can_run(workflow: dict[str, Any], object_info: dict[str, Any]) -> None:
    """Fails when a required input is neither wired nor set, or nothing in the graph is an output."""
    graph = to_api(workflow, object_info)
    for node in graph.values():
        required = object_info[node["class_type"]]["input"].get("required") or {}
        assert set(required) <= set(node["inputs"]), node
        for value in node["inputs"].values():
            assert not isinstance(value, list) or value[0] in graph, node
    assert any(object_info[node["class_type"]]["output_node"] for node in graph.values())


def test_it_has_a_note_and_a_square_thumbnail(workflow: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """The template browser shows a broken picture where there is no .jpg of the same name."""
    assert any(node["type"] in NOTES for node in workflow["nodes"])
    path = FOLDER / f"{request.node.callspec.id}.jpg"
    with Image.open(path) as picture:
        assert picture.width == picture.height >= 300
    assert path.stat().st_size < 150_000
