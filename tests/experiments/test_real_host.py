"""The command on a real ComfyUI: killed in the middle, and gone on with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from likeness.experiments import cli
from likeness.experiments.client import Client
from likeness.experiments.conduct import upload

pytestmark = pytest.mark.host
ROOT = Path(__file__).resolve().parents[2]
COLOURS = [*range(1, 40), -1]  # the last one is refused by the node's own range


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "experiments" / "run.py"), str(folder / "s.json"), *more]


@pytest.fixture()
def described(graph: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with a sweep over colours, its graph, and one red reference picture."""
    graph["picture"]["inputs"]["color"] = 0  # set itself, so that the host checks its range
    graph["text"]["inputs"]["source"] = ["picture", 0]
    (tmp_path / "references").mkdir()
    Image.new("RGB", (16, 16), (200, 0, 0)).save(tmp_path / "references" / "red.png")
    (tmp_path / "graph.json").write_text(json.dumps(graph))
    sweep = {
        "graph": "graph.json",
        "set": {"save.filename_prefix": "sweep/{run}"},
        "axes": {"colour": {"inputs": "picture.color", "values": COLOURS}},
    }
    (tmp_path / "s.json").write_text(json.dumps(sweep))
    return tmp_path


def test_killed_in_the_middle_it_goes_on_with_what_is_missing(described: Path, server: Any) -> None:
    """Fails if a kill leaves half a record, a done run is run again, or pictures belong to another run."""
    out, arguments = described / "out", ("--host", server.address, "--folder", str(described / "out"))
    with subprocess.Popen(command(described, *arguments), stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while len(list(out.glob("runs/*.json"))) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    before = {path.name: path.read_bytes() for path in out.glob("runs/*.json")}
    assert 3 <= len(before) < len(COLOURS), "it was to be killed in the middle"
    assert all(json.loads(content)["status"] == "done" for content in before.values())

    ended = subprocess.run(command(described, *arguments), capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1, ended.stderr  # one colour cannot be drawn
    assert f"{len(COLOURS)} runs, {len(COLOURS) - len(before)} to do" in ended.stdout
    after = {path.name: path.read_bytes() for path in out.glob("runs/*.json")}
    assert len(after) == len(COLOURS) and all(after[name] == content for name, content in before.items())
    for record in map(json.loads, after.values()):
        colour = record["values"]["colour"]
        if colour < 0:
            assert record["status"] == "failed" and "color" in record["error"]["message"]
            continue
        with Image.open(out / record["files"]["save"][1]) as picture:
            assert picture.getpixel((0, 0)) == (0, 0, colour)
    assert len((out / "table.md").read_text().splitlines()) == 2 + len(COLOURS) - 1
    assert (Path(server.base) / "output" / "sweep").is_dir()


def test_a_saved_workflow_and_a_score(
    described: Path, server: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Fails if a shipped workflow cannot be swept as it is, or the score is not that of the pictures."""
    sweep = {"graph": str(ROOT / "workflows" / "quickstart.json"), "preset": ["ranks", "seeds"]}
    (tmp_path / "w.json").write_text(json.dumps(sweep))
    assert cli.main([str(tmp_path / "w.json"), "--host", server.address, "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 15

    sweep = json.loads((described / "s.json").read_text())
    sweep["axes"]["colour"]["values"] = [0xC80000, 0x00C8C8]
    sweep["scores"] = {"alike": {"metric": "subject_similarity", "pictures": "save", "references": "references"}}
    (described / "s.json").write_text(json.dumps(sweep))
    out = str(described / "scored")
    assert cli.main([str(described / "s.json"), "--host", server.address, "--folder", out]) == 0
    alike, other = (row["alike"]["mean"] for row in json.loads((described / "scored" / "table.json").read_text()))
    assert alike == pytest.approx(1, abs=1e-3) and other < 0.98
    assert cli.main(["--folder", out, "--table"]) == 0  # needs no host


def test_sizes_of_models_are_those_of_the_disk(client: Client, base: Path, tiny_checkpoint: Path) -> None:
    """Fails if a LoRA's size in a table is another file's."""
    assert client.model_sizes("checkpoints")["tiny-unet.safetensors"] == tiny_checkpoint.stat().st_size
    assert client.alive() and not Client("http://127.0.0.1:9").alive()


def test_folders_in_an_uploaded_folder_stay_folders(client: Client, base: Path, tmp_path: Path) -> None:
    """Fails if the pictures of two subjects end in one folder, or captions and pictures part."""
    for name in ("owl", "mug"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), "red").save(tmp_path / name / "1.png")
        (tmp_path / name / "1.txt").write_text(f"a {name}")
    upload(client, {"library": str(tmp_path)})
    there = base / "input" / "library"
    assert {str(path.relative_to(there)): path.read_bytes() for path in there.rglob("*.*")} == {
        str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*.*")
    }


def small(described: Path, colours: list[int]) -> str:
    sweep = json.loads((described / "s.json").read_text())
    sweep["axes"]["colour"]["values"] = colours
    (described / "s.json").write_text(json.dumps(sweep))
    return str(described / "s.json")


def test_ray_brings_back_the_same_pictures(described: Path, server: Any) -> None:
    """Fails if Ray's workers need this process' modules, or its outcomes differ from a thread's."""
    pytest.importorskip("ray", reason="NOT TESTED: Ray is not installed (pip install 'ray>=2.9')")
    sweep = small(described, [5, 6, 7])
    folders = [described / "threads", described / "ray"]
    for folder, more in zip(folders, ([], ["--ray", "local"]), strict=True):
        assert cli.main([sweep, "--host", server.address, "--folder", str(folder), *more]) == 0
    one, two = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.png")} for f in folders)
    assert {name: one[name] for name in one if name.parts[0] == "files"} == {
        name: two[name] for name in two if name.parts[0] == "files"
    }
    assert sum(name.parts[0] == "files" for name in one) == 6


def test_without_ray_the_command_says_what_to_install(
    described: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails with a bare ImportError."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main([small(described, [1]), "--ray", "auto", "--folder", str(described / "out")]) == 2
    assert 'pip install "ray>=2.9"' in capsys.readouterr().err
