"""Help pages, tooltips and translations, as the page shows them."""

from __future__ import annotations

import urllib.request
from typing import Any

import pytest

NODES = {
    "LikenessDataset": "Dataset (Likeness)",
    "LikenessTrainLoRA": "Train LoRA (Likeness)",
    "LikenessTrainingOptions": "Training Options (Likeness)",
    "LikenessSamplePrompts": "Sample Prompts (Likeness)",
    "LikenessSaveLoRA": "Save LoRA (Likeness)",
    "LikenessLoadLoRA": "Load LoRA (Likeness)",
}


def add_and_select(comfy_page: Any, kind: str) -> None:
    comfy_page.page.evaluate(
        """kind => { app.graph.clear(); const node = LiteGraph.createNode(kind); node.pos = [500, 300]
            app.graph.add(node); app.canvas.ds.scale = 1; app.canvas.ds.offset[0] = app.canvas.ds.offset[1] = 0
            app.canvas.selectNode(node); app.canvas.setDirty(true, true) }""",
        kind,
    )


def test_help_opens_from_the_node(comfy_page: Any) -> None:
    """Fails when a help page is missing or is not served: the page then shows only the description."""
    comfy_page.open()
    for kind, name in NODES.items():
        add_and_select(comfy_page, kind)
        comfy_page.page.get_by_test_id("info-button").click()
        content = comfy_page.page.locator(".node-help-content .markdown-content")
        content.locator("h1", has_text=name).wait_for()
        assert content.locator("table td").count() > 3
        assert "|---" not in content.inner_text()
        comfy_page.page.get_by_test_id("info-button").click()  # closes it


def test_a_tooltip_shows_its_braces(comfy_page: Any) -> None:
    """Braces have a meaning in translations: unescaped, {trigger} would be shown as nothing."""
    comfy_page.open()
    add_and_select(comfy_page, "LikenessDataset")
    x, y = comfy_page.page.evaluate("""() => {
        const node = app.graph._nodes[0], widget = node.widgets.find(w => w.name === 'caption_template')
        const box = app.canvas.canvas.getBoundingClientRect()
        return [box.x + node.pos[0] + 60, box.y + node.pos[1] + widget.y + 10] }""")
    comfy_page.page.mouse.move(x - 5, y)
    comfy_page.page.mouse.move(x, y)
    tooltip = comfy_page.page.locator(".node-tooltip")
    tooltip.wait_for()
    assert "{trigger} and {class}" in tooltip.inner_text()


def test_translations_reach_the_page(comfy_page: Any) -> None:
    """Fails when a locale file is broken JSON (the host then leaves it out) or its keys are not the nodes' ids.

    What the page asks for is looked at, not what it shows: version 1.32 of the page forgets every pack's texts as soon
    as its own language other than English has loaded.
    """
    with comfy_page.page.expect_response("**/i18n") as answer:
        comfy_page.open()
    served = answer.value.json()
    for language in ("en", "zh"):
        assert set(served[language]["nodeDefs"]) >= set(NODES), language
        assert "LIKENESS_DATASET" in served[language]["dataTypes"]
    assert served["zh"]["nodeDefs"]["LikenessTrainLoRA"]["inputs"]["steps"]["name"] == "步数"


@pytest.mark.parametrize("kind", NODES)
def test_help_page_is_served(comfy_page: Any, kind: str) -> None:
    """The address that every version of the frontend asks."""
    address = f"{comfy_page.server.address}/extensions/likeness/docs/{kind}/en.md"
    with urllib.request.urlopen(address, timeout=30) as answer:
        assert answer.read().decode("utf-8").startswith(f"# {NODES[kind]}\n")
