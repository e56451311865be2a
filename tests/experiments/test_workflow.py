"""UI format -> API format, against graphs written by hand as the page would send them."""

from __future__ import annotations

import pytest

from likeness.experiments.workflow import find, set_inputs, to_api

INFO = {
    "Load": {
        "input": {"required": {"name": [["a.st", "b.st"]]}},
        "input_order": {"required": ["name"]},
        "display_name": "Load it",
    },
    "Sample": {
        # seed before model in the dictionary, but input_order rules
        "input": {
            "required": {
                "seed": ["INT", {"default": 0, "control_after_generate": True}],
                "model": ["MODEL"],
                "cfg": ["FLOAT", {"default": 8.0}],
                "sampler": ["COMBO", {"options": ["euler"]}],
            },
            "optional": {"extra": ["STRING", {"default": "none"}], "text": ["STRING", {"forceInput": True}]},
        },
        "input_order": {"required": ["model", "seed", "cfg", "sampler"], "optional": ["extra", "text"]},
    },
    "Patch": {"input": {"required": {"clip": ["CLIP"], "model": ["MODEL"], "strength": ["FLOAT", {}]}}},
    "LoadImage": {"input": {"required": {"image": [["x.png"], {"image_upload": True}], "scale": ["INT", {}]}}},
}


def workflow(patch_mode: int = 0) -> dict:
    """Load -> Patch -> Sample."""
    return {
        "nodes": [
            {"id": 1, "type": "Load", "inputs": [], "widgets_values": ["b.st"]},
            {
                "id": 2,
                "type": "Patch",
                "mode": patch_mode,
                "inputs": [
                    {"name": "clip", "type": "CLIP", "link": None},
                    {"name": "model", "type": "MODEL", "link": 7},
                ],
                "outputs": [{"name": "MODEL", "type": "MODEL"}],
                "widgets_values": [0.5],
            },
            {
                "id": 3,
                "type": "Sample",
                "title": "Mine",
                "inputs": [{"name": "model", "type": "MODEL", "link": 8}],
                "widgets_values": [42, "randomize", 3.0, "euler"],
            },
            {"id": 4, "type": "Note", "widgets_values": ["hello"]},
        ],
        "links": [[7, 1, 0, 2, 1, "MODEL"], [8, 2, 0, 3, 0, "MODEL"]],
    }


def test_widgets_follow_the_schema_and_control_after_generate_is_dropped():
    """Fails if the value after a seed is taken for the next widget: cfg would be "randomize"."""
    graph = to_api(workflow(), INFO)
    assert graph["3"]["inputs"] == {"seed": 42, "cfg": 3.0, "sampler": "euler", "extra": "none", "model": ["2", 0]}
    assert graph["1"] == {"class_type": "Load", "inputs": {"name": "b.st"}, "_meta": {"title": "Load it"}}
    assert graph["3"]["_meta"]["title"] == "Mine"
    assert set(graph) == {"1", "2", "3"}


def test_a_bypassed_node_hands_on_the_input_of_the_outputs_type():
    """Fails if the first input (CLIP) is handed on, or the node stays in the graph."""
    graph = to_api(workflow(patch_mode=4), INFO)
    assert set(graph) == {"1", "3"}
    assert graph["3"]["inputs"]["model"] == ["1", 0]


def test_a_muted_node_hands_on_nothing():
    """Fails if a muted node is treated as a bypassed one."""
    graph = to_api(workflow(patch_mode=2), INFO)
    assert set(graph) == {"1", "3"}
    assert "model" not in graph["3"]["inputs"]


def test_reroutes_and_primitives_are_seen_through():
    """Fails if a Reroute or a PrimitiveNode is sent to the server, which knows neither."""
    ui = workflow()
    ui["nodes"] += [
        {"id": 5, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 8}]},
        {"id": 6, "type": "PrimitiveNode", "widgets_values": [9, "fixed"]},
    ]
    ui["nodes"][2]["inputs"] = [
        {"name": "model", "type": "MODEL", "link": 9},
        {"name": "seed", "type": "INT", "link": 10, "widget": {"name": "seed"}},
    ]
    ui["links"] += [[9, 5, 0, 3, 0, "MODEL"], {"id": 10, "origin_id": 6, "origin_slot": 0, "type": "INT"}]
    graph = to_api(ui, INFO)
    assert graph["3"]["inputs"]["model"] == ["2", 0]
    assert graph["3"]["inputs"]["seed"] == 9
    assert graph["3"]["inputs"]["cfg"] == 3.0


def test_an_upload_button_takes_a_value_of_its_own():
    """Fails if the button's "image" is taken for the next widget."""
    ui = {"nodes": [{"id": 1, "type": "LoadImage", "widgets_values": ["x.png", "image", 4]}], "links": []}
    assert to_api(ui, INFO)["1"]["inputs"] == {"image": "x.png", "scale": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"type": "Gone"}, "not a node that this server has"),
        ({"widgets_values": ["b.st", 1, 2]}, "another version"),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_the_node(change, message):
    """Fails if an unknown node or too many values pass in silence."""
    ui = workflow()
    ui["nodes"][0].update(change)
    with pytest.raises(ValueError, match=f"node 1 .*{message}"):
        to_api(ui, INFO)


def test_set_inputs_changes_only_that_type_and_says_when_there_is_none():
    """Fails if another node's inputs change, or a missing type is ignored."""
    graph = to_api(workflow(), INFO)
    set_inputs(graph, "Sample", seed=1)
    assert graph["3"]["inputs"]["seed"] == 1 and "seed" not in graph["2"]["inputs"]
    assert find(graph, "Patch") == "2"
    with pytest.raises(ValueError, match="no Train"):
        set_inputs(graph, "Train", steps=1)
