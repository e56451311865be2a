"""Which runs a definition gives, and what a host would get for each."""

from __future__ import annotations

import copy
import json
from itertools import product
from pathlib import Path

import pytest

from likeness.experiments.graph import filled, find_node, with_inputs
from likeness.experiments.presets import PRESETS
from likeness.experiments.sweep import changes, from_mapping, read

GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "a.safetensors"}},
    "2": {"class_type": "LikenessTrainingOptions", "inputs": {"schedule": "constant"}, "_meta": {"title": "Options"}},
    "3": {
        "class_type": "LikenessTrainLoRA",
        "inputs": {
            **{"model": ["1", 0], "options": ["2", 0], "steps": 500, "learning_rate": 1e-4},
            **{"rank": 16, "alpha": 16.0, "seed": 0, "run_name": ""},
        },
        "_meta": {"title": "Teach v1.5"},
    },
    "4": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x"}, "_meta": {"title": "Before"}},
    "5": {"class_type": "SaveImage", "inputs": {"filename_prefix": "y"}, "_meta": {"title": "After"}},
}


def described(**more: object) -> dict:
    return {"graph": copy.deepcopy(GRAPH), **more}


RANKS = {"rank": {"inputs": ["LikenessTrainLoRA.rank", "3.alpha"], "values": [4, 8]}}
SEEDS = {"seed": {"inputs": "Teach v1.5.seed", "values": [1, 2, 3]}}


def test_a_grid_sets_every_input_of_every_combination_and_nothing_else() -> None:
    """Fails if an axis sets one of its inputs only, a title is cut at the wrong dot, or runs share a graph."""
    sweep = from_mapping(described(axes={**RANKS, **SEEDS}))
    runs = sweep.runs()
    assert [(run.values["rank"], run.values["seed"]) for run in runs] == list(product([4, 8], [1, 2, 3]))
    for run in runs:
        want = copy.deepcopy(GRAPH)
        want["3"]["inputs"].update(rank=run.values["rank"], alpha=run.values["rank"], seed=run.values["seed"])
        assert run.graph == want
    assert len({run.key for run in runs}) == 6 and sweep.graph == GRAPH


def test_zip_pairs_and_repeats() -> None:
    """Fails if values side by side are crossed, or seeds are not crossed with all else."""
    steps = {"steps": {"inputs": "3.steps", "values": [100, 200]}}
    runs = from_mapping(described(axes={**RANKS, **steps, **SEEDS}, design="zip", replicates=["seed"])).runs()
    got = [tuple(run.values.values()) for run in runs]
    assert got == [(4, 100, 1), (4, 100, 2), (4, 100, 3), (8, 200, 1), (8, 200, 2), (8, 200, 3)]
    assert len(from_mapping(described(axes={**RANKS, **steps, **SEEDS}, design="pairs")).runs()) == 6
    with pytest.raises(ValueError, match="equally many"):
        from_mapping(described(axes={**RANKS, **SEEDS}, design="zip"))


def test_the_flux_study_is_its_table_one() -> None:
    """Fails if an experiment is missing or mistyped; the counts are those of the paper's Table 1, read by hand."""
    runs = from_mapping(described(preset="flux-study")).runs()
    assert len(runs) == 11
    values = [run.values for run in runs]
    assert [sum(v["learning_rate"] == rate for v in values) for rate in (1e-3, 5e-4, 1e-4)] == [4, 4, 3]
    assert [sum(v["rank"] == rank for v in values) for rank in (8, 16, 32)] == [3, 4, 4]
    assert [sum(v["steps"] == steps for v in values) for steps in (500, 1000, 1500)] == [3, 6, 2]
    assert values[10] == {"learning_rate": 5e-4, "rank": 16, "steps": 1000, "schedule": "constant"}
    assert values[1] == {"learning_rate": 1e-4, "rank": 32, "steps": 1500, "schedule": "cosine"}
    assert sum(v["schedule"] == "constant" for v in values) == 1
    inputs = runs[9].graph["3"]["inputs"]  # experiment 10
    assert (inputs["learning_rate"], inputs["rank"], inputs["alpha"], inputs["steps"]) == (1e-3, 32, 32, 500)
    assert runs[10].graph["2"]["inputs"]["schedule"] == "constant"


def test_every_preset_fits_the_nodes_and_several_go_together() -> None:
    """Fails if a preset names an input that the node has not, or a second preset drops the first one's axes."""
    graph = described()
    graph["graph"]["6"] = {"class_type": "LikenessPriorPreservation", "inputs": {"weight": 1.0}}
    for name in PRESETS.keys() - {"lora-library"}:
        assert from_mapping({**graph, "preset": name}).runs()
    sweep = from_mapping(described(preset=["ranks", "seeds"], axes={"rank": {"inputs": "3.rank", "values": [2]}}))
    assert [run.values for run in sweep.runs()] == [{"rank": 2, "seed": seed} for seed in (1, 2, 3)]
    assert sweep.replicates == ("seed",) and sweep.varied == ("rank",)


def test_a_library_has_a_run_for_each_folder_of_pictures(tmp_path: Path) -> None:
    """Fails if a folder is left out, a file counts as one, or its name is not trigger, folder and file at once."""
    graph = {
        "data": {"class_type": "LikenessDataset", "inputs": {"folder": "", "trigger": ""}},
        "save": {"class_type": "LikenessSaveLoRA", "inputs": {"filename": "likeness/my_subject"}},
    }
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"graph": "graph.json", "preset": "lora-library"}))
    (tmp_path / "subjects").mkdir()
    (tmp_path / "subjects" / "note.txt").write_text("no folder")
    with pytest.raises(ValueError, match="subjects, and there are none"):
        read(path)
    for name in ("owl", "mug"):
        (tmp_path / "subjects" / name).mkdir()
    sweep = from_mapping(read(path))
    assert sweep.uploads == {"library": str(tmp_path / "subjects")}
    inputs = [{**run.graph["data"]["inputs"], **run.graph["save"]["inputs"]} for run in sweep.runs()]
    assert inputs == [
        {"folder": f"library/{name}", "trigger": name, "filename": f"library/{name}"} for name in ("mug", "owl")
    ]


def test_a_choice_sets_inputs_of_its_own_and_words_are_filled_in() -> None:
    """Fails if {trigger} is touched, {run} is the same for two runs, or a choice's inputs are not set."""
    subjects = [{"label": name, "set": {"4.filename_prefix": f"of {name}"}} for name in ("cat", "dog")]
    sweep = from_mapping(
        described(axes={"subject": {"values": subjects}}, set={"3.run_name": "{subject} {run} {trigger}"})
    )
    one, two = sweep.runs()
    assert one.graph["4"]["inputs"]["filename_prefix"] == "of cat"
    assert one.graph["3"]["inputs"]["run_name"] == f"cat {one.key} {{trigger}}" and one.key != two.key
    assert filled("{a}{b}", {"a": "{b}", "b": 1}) == "11" and filled(3, {"a": 1}) == 3


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("3.rnak", "has no input 'rnak'; it has .*rank"),
        ("Nothing.rank", "no node is called 'Nothing'"),
        ("SaveImage.filename_prefix", "2 nodes are called 'SaveImage'"),
        ("3.model", "wired from node 1"),
        ("rank", "is no address"),
    ],
)
def test_an_address_that_leads_nowhere_says_what_there_is(address: str, match: str) -> None:
    """Fails if a mistyped input is sent to the host, which would ignore it and run the same thing again and again."""
    with pytest.raises(ValueError, match=match):
        with_inputs(GRAPH, {address: 1})


def test_ids_come_before_titles_and_titles_before_types() -> None:
    """Fails if a title can hide an id."""
    graph = {**GRAPH, "9": {"class_type": "4", "inputs": {}, "_meta": {"title": "3"}}}
    assert (find_node(graph, "3"), find_node(graph, "After"), find_node(graph, "4")) == ("3", "5", "4")


def test_what_counts_as_a_change() -> None:
    """Fails if one more seed counts as another sweep, or another graph, setting or input as the same one."""
    before = from_mapping(described(axes=SEEDS)).to_mapping()
    more = {"seed": {"inputs": "Teach v1.5.seed", "values": [1, 2, 3, 4]}}
    assert changes(before, from_mapping(described(axes=more, results={"x": {"node": "4"}})).to_mapping()) == []
    other = described(axes=SEEDS)
    other["graph"]["3"]["inputs"]["steps"] = 501
    assert changes(before, from_mapping(other).to_mapping()) == ["graph"]
    assert changes(before, from_mapping(described(axes=SEEDS, set={"3.steps": 9})).to_mapping()) == ["set"]
    assert changes(before, from_mapping(described(axes=RANKS)).to_mapping()) == ["inputs"]
    again = from_mapping(before)
    assert again.to_mapping() == before and [r.key for r in again.runs()] == [
        r.key for r in from_mapping(described(axes=SEEDS)).runs()
    ]


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"axis": {}}, "unknown parts axis"),
        ({"preset": "rank"}, "no preset is called 'rank'; there are flux-study"),
        ({"axes": {"a": {"inputs": "3.rank", "values": []}}}, "at least one"),
        ({"axes": {"a": {"inputs": "3.rank", "values": [1, 1]}}}, "a value twice"),
        ({"axes": {"a": {"values": [1]}}}, "sets nothing"),
        ({"axes": RANKS, "replicates": ["seed"]}, "replicates names seed"),
        ({"axes": RANKS, "design": "random"}, "'random' is not known"),
        ({"axes": RANKS, "design": "rows", "rows": [{"rank": 5}]}, "none of"),
        ({"axes": RANKS, "interval": "normal"}, "t or bootstrap"),
        ({"graph": {"nodes": [], "links": []}}, "API format"),
        ({"scores": {"f": {"pictures": "Nope"}}}, "no node is called 'Nope'"),
    ],
)
def test_a_wrong_definition_says_what_is_wrong(more: dict, match: str) -> None:
    """Fails if a mistake is only noticed after hours, or silently does something else."""
    with pytest.raises(ValueError, match=match):
        from_mapping({**described(), **more})
