"""1,200 names that a graph from a stranger could hold: none leads out of the host's folders, each error is clear.

Links are another matter than names. What is written never goes through one. What is read follows those inside the input
folder, as the host does: only the machine's owner can put a link there, and many keep their photos elsewhere.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.host
EACH = 300
TRICKS = (
    "..", "../..", "../x", "a/../../x", "./..", "....//x", "..\\x", "..\\..\\x", "/", "/etc", "/etc/passwd",
    "//host/share", "\\\\host\\share", "C:\\x", "C:x", "\\\\?\\C:\\x", "~", "~root", "~/x", "$HOME", "%2e%2e/x",
    "..%2f", "file:///etc", "a\x00b", "\x00", "a\nb", "\r", "\x1b[2J", ".", "", " ", "...", "-rf", ".hidden", "a/",
    "/a", "a//b", "CON", "nul.txt", "aux", "x" * 300, "é" * 200, "x/" * 3000, "😀" * 90, "\u202e", "\ud800",
    "\ufeff", "a:b", "a*", "?", '"', "<", "|", "sym", "sym/x", "loop", "loop/x", "inside", "checkpoints",
    "../checkpoints/step-1", "likeness", "runs/../..", "a" * 120, "step-000001",
)  # fmt: skip


def name_of(chance: random.Random, base: Path) -> str:
    """One trick, or several joined; now and then a real path outside."""
    parts = [chance.choice((*TRICKS, str(base.parent), str(base))) for _ in range(chance.choice((1, 1, 2, 3)))]
    return chance.choice(("/", "", "\\", "/../")).join(parts)


@pytest.fixture()
def tree(comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's folders, with links out of them and a run that lies outside."""
    for name in ("input", "output", "models/loras"):
        (tmp_path / "host" / name).mkdir(parents=True)
    outside = tmp_path / "outside"
    (outside / "checkpoints" / "step-000001").mkdir(parents=True)
    (outside / "checkpoints" / "step-000001" / "state.json").write_text("{}")
    for name in ("input", "output", "output/likeness"):
        folder = tmp_path / "host" / name
        folder.mkdir(exist_ok=True)
        (folder / "sym").symlink_to(outside)
        (folder / "loop").symlink_to("loop")
        (folder / "inside" / "checkpoints" / "step-000001").mkdir(parents=True)
    for name in ("input", "output"):
        folder = tmp_path / "host" / name
        monkeypatch.setattr(comfy.folder_paths, f"get_{name}_directory", lambda folder=folder: str(folder))
    loras = tmp_path / "host" / "models" / "loras"
    monkeypatch.setattr(comfy.folder_paths, "get_folder_paths", lambda kind: [str(loras)])
    return tmp_path


def everything(folder: Path) -> set[str]:
    return {os.path.join(at, name) for at, folders, files in os.walk(folder) for name in (*folders, *files)}


@pytest.mark.skipif(os.name != "posix", reason="links as POSIX has them")
@pytest.mark.parametrize("what", ["input folder", "new run", "resume", "save"])
def test_no_name_leads_out(what: str, judge: Any, tree: Path) -> None:
    """Fails if a name gives a path outside, makes anything outside, or an error that is not ours."""
    from likeness.nodes.host import folders
    from likeness.nodes.lora_files import LikenessSaveLoRA

    host = tree / "host"
    layer = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    lora = {f"{layer}.lora_up.weight": torch.ones(2, 1), f"{layer}.lora_down.weight": torch.ones(1, 2)}
    inside = {"input folder": "input", "new run": "output/likeness", "resume": "output", "save": "models/loras"}[what]
    base = (host / inside).resolve()
    call: Callable[[str], Any] = {
        "input folder": folders.input_folder,
        "new run": lambda name: folders.new_run_folder(name, chance.choice(TRICKS)),
        "resume": lambda name: folders.resumed_run(name),
        "save": lambda name: LikenessSaveLoRA.execute(lora, name, "comfy", "fp16").result[0],
    }[what]
    before = everything(tree)
    chance = random.Random(what)
    for _ in range(EACH):
        name = name_of(chance, base)
        found = judge.read(what, "", lambda name=name: call(name))
        for path in found if isinstance(found, tuple) else [found] if found is not None else []:
            real = Path(path).resolve()
            if what == "input folder":  # the name stays inside; only the owner's link leads on
                assert ".." not in path.parts and path.is_relative_to(base), f"{name!r} leads to {path}"
                real = base if "sym" in path.relative_to(base).parts else real
            assert real.is_relative_to(base), f"{name!r} leads to {real}"
            assert real.is_dir() or what == "save", name
            if what in ("new run", "resume"):
                assert real != base and len(os.fsencode(real.name)) <= 255
    made = everything(tree) - before
    assert all(Path(path).resolve().is_relative_to(base) for path in made), made
    assert bool(made) == (what in ("new run", "save"))
    assert judge.accepted[what] and (judge.refused[what] or what == "new run")
    assert judge.total == EACH


def test_a_run_is_found_by_name_and_by_path_but_not_outside(tree: Path) -> None:
    """Fails if one of the ways to name a run is lost, or a run outside would be written to."""
    from likeness.nodes.host import folders

    run = tree / "host" / "output" / "likeness" / "inside"
    step = run / "checkpoints" / "step-000001"
    for text in ("inside", "likeness/inside", str(run), f" {run} "):
        assert folders.resumed_run(text) == (run, run)
    for text in ("inside/checkpoints/step-000001", str(step)):
        assert folders.resumed_run(text) == (run, step)
    for text in (str(tree / "outside"), "../../../outside", "sym", "sym/checkpoints/step-000001", str(tree)):
        with pytest.raises(ValueError, match="outside of ComfyUI's output folder"):
            folders.resumed_run(text)
    (run / "samples").symlink_to(tree / "outside")
    with pytest.raises(ValueError, match="is a link"):
        folders.resumed_run("inside")


def test_the_owners_links_are_followed_and_names_do_not_climb(tree: Path) -> None:
    """Fails if photos that are linked into the input folder are refused, or a text gets to the same place by itself."""
    from likeness.nodes.host import folders
    from likeness.trainers.dataset import load_folder

    base, outside = tree / "host" / "input", tree / "outside"
    Image.new("RGB", (32, 32), "red").save(outside / "a.png")
    (outside / "a.txt").write_text("a red sks")
    for text in ("sym", "sym/", "inside/../sym", str(base / "sym")):
        assert folders.input_folder(text) == base / "sym"
        assert load_folder(folders.input_folder(text), resolution=32).pictures[0].caption == "a red sks"
    assert folders.input_folder("sym/../inside") == base / "inside"  # not what lies beside the link's target
    before = folders.folder_fingerprint("sym")
    (outside / "a.txt").write_text("a very red sks")
    assert folders.folder_fingerprint("sym") != before
    for text in ("..", "../../outside", "sym/../../../outside", str(outside), "/", "inside/../../output"):
        with pytest.raises(ValueError, match="outside of ComfyUI's input folder"):
            folders.input_folder(text)
        assert folders.folder_fingerprint(text) == ""


def test_links_in_circles_end(tree: Path) -> None:
    """Fails if a folder that holds itself is walked for ever, or a link to itself is taken for a folder."""
    from likeness.nodes.host import folders

    round_ = tree / "host" / "input" / "round"
    round_.mkdir()
    (round_ / "again").symlink_to(round_)
    (round_ / "up").symlink_to("..")
    assert folders.folder_fingerprint("round") and folders.folder_fingerprint("round/again/up/round")
    with pytest.raises(ValueError, match="loop"):
        folders.input_folder("loop")


def test_folders_as_others_make_them(tree: Path) -> None:
    """Fails if a name that is no UTF-8, a link to nowhere or a pipe ends the look at whether anything changed."""
    from likeness.nodes.host import folders

    mine = tree / "host" / "input" / "mine"
    mine.mkdir()
    with open(os.fsencode(mine) + b"/\xff\xfe.png", "wb") as file:
        file.write(b"x")
    (mine / "nowhere.png").symlink_to("nothing")
    os.mkfifo(mine / "pipe.txt")
    before = folders.folder_fingerprint("mine")
    assert before and before == folders.folder_fingerprint("mine")
    (mine / "a.txt").write_text("x")
    assert folders.folder_fingerprint("mine") != before
    for name in ("loop", "a\0b", "x" * 5000, None):
        assert folders.folder_fingerprint(name) == ""


@pytest.mark.parametrize(
    ("text", "name"), [("CON", "CON_"), ("lpt1.x", "lpt1.x_"), ("..", ""), ("é" * 300, "é" * 80), ("a b", "a_b")]
)
def test_names_that_file_systems_take(comfy: Any, text: str, name: str) -> None:
    """Fails if a run's name is a device on Windows, or too long for a folder."""
    from likeness.nodes.host import folders

    assert folders.safe_name(text) == name
