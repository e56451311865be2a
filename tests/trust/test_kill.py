"""kill -9 at random moments of training: the last checkpoint is always whole, and nothing is lost but the time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KILLS = 30

TRAINER = """
import importlib.util, json, os, random, signal, sys, time
from pathlib import Path

def load(name, path, **more):
    spec = importlib.util.spec_from_file_location(name, path, **more)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

root, folder, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
load("likeness", root / "__init__.py", submodule_search_locations=[str(root)])
import peft, torch
from likeness.trainers import checkpoints
from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.outcome import Callbacks

toys = load("toys", root / "tests" / "trainers" / "conftest.py")
torch.set_num_threads(1)
run, chance, data = folder / "run", random.Random(9), toys.toy_data(flip=True)
kept = dict(rank=2, alpha=1.0, learning_rate=1e-2, targets="all", batch_size=2, seed=5, dropout=0.1)
kept["caption_dropout"] = 0.2
often = TrainingConfig(steps=100_000, checkpoint_every=1, keep_last=2, **kept)
steps, half, back, before_first = [0], 0, 0, 0
# where a busy machine let no kill hit a moment of writing, some more
while len(steps) <= kills or (len(steps) <= 6 * kills and not (half and back and before_first and steps[-1] > 5)):
    there = checkpoints.checkpoints_in(run)
    start = None if not there else run
    if len(there) > 1 and chance.random() < 0.2:
        start, back = there[0], back + 1  # leaves a branch, whose checkpoints are deleted
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            told = Callbacks(progress=lambda *_: os.write(tell, b"."))
            train(toys.ToyDenoiser(), data, often, run, told, start)
        finally:
            os._exit(1)
    os.close(tell)
    if chance.random() < 0.8:
        for _ in range(chance.randint(1, 4)):
            assert os.read(hear, 1), "the trainer ended by itself"  # another step is made
    else:
        before_first += 1
    time.sleep(chance.uniform(0, 0.06))
    os.kill(pid, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    os.close(hear)
    for path in checkpoints.checkpoints_in(run):
        found = checkpoints.load(path)  # refuses whatever is half
        assert path.name == f"step-{found.step:06}"
    steps.append(found.step if checkpoints.checkpoints_in(run) else 0)
    assert steps[-1] or not steps[-2], "a killed run lost its last checkpoint"
    half += any(path.name.startswith(".") for path in run.rglob("*"))
last = steps[-1] + 2
rest = TrainingConfig(steps=last, checkpoint_every=1, keep_last=2, **kept)
resumed = train(toys.ToyDenoiser(), data, rest, run, resume_from=run)
whole = train(toys.ToyDenoiser(), data, TrainingConfig(steps=last, **kept), folder / "whole")
assert resumed.losses == whole.losses
for name, delta in whole.deltas.items():
    assert torch.equal(resumed.deltas[name].up, delta.up) and torch.equal(resumed.deltas[name].down, delta.down)
for name in ("lora.safetensors", "optimizer.safetensors"):
    one, other = (checkpoints.place(at, last) / name for at in (run, folder / "whole"))
    assert one.read_bytes() == other.read_bytes()
logged = [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()]
assert logged == list(range(1, last + 1))
assert not any(path.name.startswith(".") for path in (run / "checkpoints").iterdir())
print(json.dumps({"steps": last, "half": half, "back": back, "before the first step": before_first}))
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no kill -9")
def test_kill_9_in_training_loses_nothing(tmp_path: Path) -> None:
    """Fails if one of 30 killed runs left half a checkpoint or none, or going on differs from an unbroken run."""
    command = [sys.executable, "-c", TRAINER, str(ROOT), str(tmp_path), str(KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["half"] > 0, "no run was killed while it wrote, so nothing was tested"
    assert told["steps"] > 5 and told["back"] > 0 and told["before the first step"] > 0
