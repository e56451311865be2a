"""The pieces of ./demo and ./test that need neither network nor host."""

from __future__ import annotations

import threading

import pytest
from PIL import Image

from likeness.devtools import demo, grid, progress, tiers
from likeness.devtools.paths import ROOT
from likeness.devtools.server import linked_pack, make_base
from likeness.experiments.client import Event


def test_a_base_links_the_pack_once_and_never_replaces_a_stranger(tmp_path):
    """Fails if a second run links again under another name, or a folder of the user's is taken away."""
    pack = tmp_path / "my-pack"
    pack.mkdir()
    base = make_base(tmp_path / "base", pack)
    assert linked_pack(base, pack) == base / "custom_nodes" / "likeness"
    make_base(base, pack)
    assert len(list((base / "custom_nodes").iterdir())) == 1
    users = tmp_path / "users"
    (users / "custom_nodes" / "likeness").mkdir(parents=True)
    with pytest.raises(ValueError, match="already there"):
        make_base(users, pack)
    other = tmp_path / "other"
    (other / "custom_nodes").mkdir(parents=True)
    (other / "custom_nodes" / "cloned").symlink_to(pack)
    assert linked_pack(make_base(other, pack), pack) == other / "custom_nodes" / "cloned"
    assert len(list((other / "custom_nodes").iterdir())) == 1


def test_the_grid_shows_every_picture_where_its_column_says():
    """Fails if before and after are swapped, or a picture is missing: each has a colour of its own."""
    red, green, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue"))
    rows = [grid.Row("a", [red] * 2, [green] * 2), grid.Row("b", [red] * 2, [green] * 2)]
    sheet = grid.draw([blue] * 5, rows, "title", "footer", cell=32)
    counts = {colour: number for number, colour in sheet.getcolors(10**6)}
    assert counts[(255, 0, 0)] == counts[(0, 255, 0)] == 4 * 32 * 32
    assert counts[(0, 0, 255)] == 5 * 32 * 32
    columns = {
        colour: [x for x in range(sheet.width) if any(sheet.getpixel((x, y)) == colour for y in range(sheet.height))]
        for colour in ((0, 0, 255), (255, 0, 0), (0, 255, 0))
    }
    blue_at, red_at, green_at = columns.values()
    assert max(blue_at) < min(red_at) and max(red_at) < min(green_at)


def test_the_bar_says_which_node_how_far_and_when(capsys, monkeypatch):
    """Fails if progress of one node is shown under another one's title, a log gets a line a step, or the time left is
    not what the steps so far say."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Bar({"7": {"_meta": {"title": "Teach"}}, "8": {}})
    bar(Event("executing", {"node": "7"}))
    for step in range(1, 101):
        now[0] = step * 0.5
        bar(Event("progress", {"node": "7", "value": step, "max": 100}))
    bar(Event("progress", {"node": "8", "value": 1, "max": 1}))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and all("Teach" in line for line in lines[:4])
    assert "31/100" in lines[0] and lines[0].endswith("34 s left")  # 15.5 s for 31 steps
    assert "100/100" in lines[3] and "Teach" not in lines[4]


def test_the_prompt_of_a_picture_is_the_positive_one():
    """Fails if the negative prompt, or another branch's, labels the row."""
    graph = {
        "1": {"class_type": "CLIPTextEncode", "inputs": {"text": "wanted"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "not wanted"}},
        "3": {"class_type": "KSampler", "inputs": {"seed": 1, "negative": ["2", 0], "positive": ["1", 0]}},
        "4": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0]}},
        "5": {"class_type": "SaveImage", "inputs": {"images": ["4", 0]}},
        "6": {"class_type": "PrimitiveInt", "inputs": {"value": 1}},
        "7": {"class_type": "KSampler", "inputs": {"seed": ["6", 0]}},
    }
    assert demo.prompt_of(graph, "5") == "wanted"
    demo.set_seed(graph, 9)
    assert graph["3"]["inputs"]["seed"] == 9 and graph["6"]["inputs"]["value"] == 9


def test_the_last_line_sums_what_the_tiers_said(capsys):
    """Fails if a failed tier ends with 0, or the counts do not add up."""
    outcomes = [
        tiers.Outcome("lint", True, 1.0, "clean"),
        tiers.Outcome("unit", True, 2.5, "100 passed, 1 skipped in 2.50s"),
        tiers.Outcome("host", False, 10.0, "1 failed, 20 passed, 2 errors in 10.00s"),
    ]
    assert tiers.summary(outcomes, 13.5) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "===== 1 failed, 2 error, 120 passed, 1 skipped in 13.50s ====="
    assert lines[-2] == "failed: host"
    assert tiers.summary(outcomes[:2], 3.5) == 0


def test_what_runs_aside_is_shown_when_the_others_are_through(capfd, monkeypatch):
    """Fails if its lines come between those of others, are lost, or come twice; or if a tier or half of quality is left
    out."""
    others_done = threading.Event()

    def pytest_tier(tier, arguments, may_be_empty=False, threads=0, output=None):
        output = output or tiers.Output()
        output.write(f"{tier} begins\n".encode())
        if tier == "quality 1":
            assert others_done.wait(10) and set(tiers.LONGEST) < set(arguments)
        output.write(f"{tier} ends\n".encode())
        if tier == "quality 2":
            assert {f"--ignore={file}" for file in tiers.LONGEST} < set(arguments)
            others_done.set()
        return tiers.Outcome(tier, True, 1.0, "1 passed in 1.00s")

    monkeypatch.setattr(tiers, "pytest_tier", pytest_tier)
    monkeypatch.setattr(tiers.browser, "ensure_chromium", lambda: "chromium")
    outcomes = tiers.side_by_side(["unit", "host", "browser", "quality"], [])
    parts = ["unit", "host", "quality 2", "quality 1", "browser"]
    assert [outcome.tier for outcome in outcomes] == parts and all((ROOT / file).is_file() for file in tiers.LONGEST)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.endswith((" begins", " ends"))]
    assert lines == [f"{tier} {what}" for tier in parts for what in ("begins", "ends")]
