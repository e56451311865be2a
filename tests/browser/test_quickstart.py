"""What a user does first: open the quickstart from the template list, press Run, look."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOT = os.environ.get("LIKENESS_SCREENSHOT")  # train in full, and leave a picture of the finished graph there
PICTURES = ("PreviewImage", "SaveImage")


def shipped(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "workflows" / f"{name}.json").read_text("utf-8")))


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "workflows").glob("*.json")))
def test_every_template_opens_from_the_list_and_keeps_its_values(open_page: Any, name: str) -> None:
    """Fails when the pack does not load, a workflow names a node that neither it nor the host has, or values slip to
    another widget: the page's graphToPrompt must give what experiments.workflow gives."""
    from likeness.experiments.client import Client
    from likeness.experiments.workflow import to_api

    uncaught: list[str] = []
    open_page.page.on("pageerror", lambda error: uncaught.append(str(error)))
    open_page.open_template(name)
    nodes = open_page.nodes()
    assert [node["id"] for node in nodes] and len(nodes) == len(shipped(name)["nodes"])
    assert [node["type"] for node in nodes if not node["known"]] == []
    assert open_page.page.get_by_text("Missing Node").count() == 0
    assert open_page.page.evaluate("[...app.graph.links.values()].length") == len(shipped(name)["links"])
    assert uncaught == []
    from_page = open_page.page.evaluate("app.graphToPrompt().then(p => p.output)")
    info = Client(open_page.server.address).object_info()
    ours = to_api(shipped(name), info)
    for node in from_page.values():  # the page also sends what some nodes only show
        known = {key for group in info[node["class_type"]]["input"].values() for key in group}
        node["inputs"] = {key: value for key, value in node["inputs"].items() if key in known}
    assert {key: (node["class_type"], node["inputs"]) for key, node in from_page.items()} == {
        key: (node["class_type"], node["inputs"]) for key, node in ours.items()
    }


def test_run_trains_and_shows_the_pictures(comfy_page: Any) -> None:
    """Fails when Run does not queue the graph, a node raises, or the page has nothing to show afterwards."""
    comfy_page.open().open_template("quickstart")
    if not SCREENSHOT:  # the shape of the whole run in seconds; how good it gets is the quality tier's question
        comfy_page.set_widgets("LikenessTrainLoRA", steps=2)
        comfy_page.set_widgets("LikenessSamplePrompts", every=1, steps=2)
        comfy_page.set_widgets("KSampler", steps=2)
    comfy_page.run(timeout=1800 if SCREENSHOT else 300)
    open_nodes = [node for node in comfy_page.nodes() if not node["folded"]]
    shown = {node["title"]: node["pictures"] for node in open_nodes if node["type"] in PICTURES}
    assert {f"{side}: prompt {i}": 4 for side in ("Before", "After") for i in (1, 2, 3)}.items() <= shown.items()
    assert all(count > 0 for count in shown.values()), shown
    assert comfy_page.of("LikenessTrainLoRA")[0]["pictures"] == 1, "the samples of the training node are not shown"
    assert "layers learn" in comfy_page.of("LikenessTrainingOptions")[0]["texts"][0]
    saved = comfy_page.server.base / "models" / "loras" / "likeness" / "quickstart.safetensors"
    assert comfy_page.of("LikenessSaveLoRA")[0]["texts"] == [str(saved)] and saved.is_file()
    if SCREENSHOT:
        comfy_page.picture(Path(SCREENSHOT).resolve())


def test_the_saved_lora_can_be_chosen_and_used(comfy_page: Any) -> None:
    """Runs after the quickstart: fails when its file is not offered by the loaders, or does not load."""
    saved = comfy_page.server.base / "models" / "loras" / "likeness" / "quickstart.safetensors"
    if not saved.is_file():
        pytest.skip("the quickstart has not run")
    comfy_page.open().open_template("use_a_lora")
    comfy_page.set_widgets("KSampler", steps=2)
    comfy_page.run(timeout=300)
    assert [node["pictures"] for node in comfy_page.of("PreviewImage")] == [4, 4, 4]


def test_what_a_node_shows_as_text_is_not_saved_with_the_graph(comfy_page: Any) -> None:
    """Fails when the text widget gets a value in the workflow or a socket: the next version would read it wrongly."""
    comfy_page.open().open_template("quickstart")
    saved = comfy_page.page.evaluate("app.graph.serialize()")
    by_id = {node["id"]: node for node in saved["nodes"]}
    for node in shipped("quickstart")["nodes"]:
        if node["type"].startswith("Likeness"):
            again = by_id[node["id"]]
            assert again["widgets_values"] == node["widgets_values"], node["type"]
            assert [slot["name"] for slot in again["inputs"]] == [slot["name"] for slot in node["inputs"]]
