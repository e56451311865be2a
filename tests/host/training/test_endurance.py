"""Long use of one server: a thousand steps in flat memory, and fifty cancels that cost nothing.

LIKENESS_ENDURANCE is the share of both that is run: 0.2 unless set, so that `./test` stays short; 1 is the whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from likeness.devtools.server import Server
from likeness.experiments.client import Client, Event, Interrupted

pytestmark = pytest.mark.quality
SHARE = float(os.environ.get("LIKENESS_ENDURANCE", "0.2"))
Graphs = Callable[..., dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(base: Path) -> Path:
    return base / "output" / "likeness"


def tensors_of(folder: Path) -> bytes:
    with safe_open(folder / f"{folder.name}.safetensors", "pt") as file:
        whole = b"".join(name.encode() + file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys()))
    return hashlib.sha256(whole).digest()  # short, or pytest compares megabytes line by line where they differ


def is_complete(folder: Path, steps: int) -> bool:
    """Every file of a finished run is there, the log has each step once, and nothing half written lies about."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "log.jsonl", "checkpoints", f"{folder.name}.safetensors"}
    assert (folder / "checkpoints" / f"step-{steps:06}" / "state.json").is_file()
    return not [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read as Linux tells it")
def test_a_thousand_steps_in_flat_memory(
    client: Client, training: Graphs, server: Server, runs: Path, figures: dict[str, Any]
) -> None:
    """Fails if the server's memory grows by 2 % over the last 900 steps, sample pictures and checkpoints included."""
    steps = max(300, round(1000 * SHARE) // 50 * 50)
    assert server.process is not None
    statm = Path(f"/proc/{server.process.pid}/statm")
    seen: dict[int, int] = {}

    def look(event: Event) -> None:
        if event.kind == "progress" and event.data.get("node") == "train":
            seen.setdefault(event.data["value"] // 50, int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    options = {"checkpoint_every": 100, "keep_last": 2}
    graph = training(run_name="soak", steps=steps, options=options, samples={"every": 200})
    run = client.run(graph, timeout=3600, on_event=look)
    memory = [seen[number] for number in sorted(seen)]
    first, last = max(memory[2:5]), max(memory[-3:])  # of steps 100 to 200, and the last 100
    figures["soak"] = {
        "steps": steps,
        "seconds": round(run.seconds),
        "memory_mb": [round(value / 1e6) for value in memory],
        "growth": round(last / first - 1, 5),
    }
    assert len(memory) >= steps // 50
    assert last < 1.02 * first, memory
    assert is_complete(runs / "soak", steps)
    pictures = sorted((runs / "soak" / "samples").iterdir())
    assert [path.name for path in pictures] == [f"step-{step:06}.png" for step in range(200, steps + 1, 200)]
    assert all(Image.open(path).size == (128, 64) for path in pictures)


def test_fifty_cancels_cost_nothing(
    client: Client, training: Graphs, draw: Callable[..., np.ndarray], runs: Path, figures: dict[str, Any]
) -> None:
    """Queued, cancelled at a random step and resumed, again and again: the LoRA is that of a run left in peace.

    Fails if a cancel loses or repeats a step, leaves half a file, or leaves anything in the model.
    """
    cycles = max(5, round(50 * SHARE))
    constant = {"schedule": "constant"}  # a run that is lengthened goes on as it was
    chance = random.Random(50)
    before = draw()
    done, early = [0], 0
    for cycle in range(cycles):
        at = done[-1] + chance.randint(1, 3)
        early_one = cycle > 0 and chance.random() < 0.2  # before the first step, while pictures are encoded
        told = False

        def cancel(event: Event, at: int = at, early_one: bool = early_one) -> None:
            nonlocal told
            begun = event.kind == "executing" and event.data.get("node") == "train"
            step = event.data["value"] if event.kind == "progress" and event.data.get("node") == "train" else 0
            if not told and ((begun and early_one) or step >= at):
                told = True
                client.interrupt()

        where = {"resume_from": "cancelled-often"} if cycle else {"run_name": "cancelled-often"}
        with pytest.raises(Interrupted):
            client.run(training(steps=100_000, options=constant, **where), on_event=cancel)
        kept = sorted((runs / "cancelled-often" / "checkpoints").glob("step-*"))
        assert 1 <= len(kept) <= 2
        step = json.loads((kept[-1] / "state.json").read_text("utf-8"))["step"]
        assert step >= done[-1], "steps were lost"
        early += step == done[-1]
        done.append(step)
    steps = done[-1] + 2
    client.run(training(steps=steps, resume_from="cancelled-often", options=constant))
    client.run(training(steps=steps, run_name="left-in-peace", options=constant))
    assert tensors_of(runs / "cancelled-often") == tensors_of(runs / "left-in-peace")
    assert is_complete(runs / "cancelled-often", steps) and is_complete(runs / "left-in-peace", steps)
    assert np.array_equal(draw(anew=True), before)
    figures["cancels"] = {"cycles": cycles, "steps": steps, "before the first step": early}
    assert early < cycles, "nothing was ever trained"
