"""The GPU benchmark where there is no GPU: its rows, its targets, its refusal, and that a dead contender is a row."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark() -> Iterator[SimpleNamespace]:
    """gpu_report, gpu_step and models, imported as the script imports them."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in ("models", "gpu_report", "gpu_step")})
    finally:
        sys.path.remove(str(FOLDER))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
                del sys.modules[name]


def rows(report: ModuleType, **changes: tuple[float, float]) -> list:
    """Every case as (seconds, peak GiB): by the initial of who, S where blocks are swapped."""
    cost = {"b": (0.9, 22.0), "p": (0.42, 9.0), "L": (0.4, 8.0), "f": (0.38, 7.0), "S": (0.6, 2.5)} | changes
    made = []
    for case in report.CASES:
        seconds, peak = cost["S" if "swapped" in case.mode else case.who[0]]
        made.append(report.Row(case, [seconds, 9.0, seconds], [1.0, 0.9], weights=4.8 if peak > 4 else 0, peak=peak))
    return made


def test_all_targets_met(benchmark: SimpleNamespace) -> None:
    """Fails if a target is read the wrong way round, or a step that was once slow decides."""
    found = benchmark.gpu_report.judge(rows(benchmark.gpu_report))
    assert [finding.line() for finding in found if not finding.ok] == []
    names = {finding.name for finding in found}
    assert "sdxl-1024:speed-against-built-in:all:plain" in names
    assert "flux:peak-with-swap:attention" in names


@pytest.mark.parametrize(
    ("change", "short"),
    [
        ({"b": (0.7, 22.0)}, "sdxl-1024:speed-against-built-in:all:plain 1.75 >=2 short"),
        ({"p": (0.4, 9.0)}, "sdxl-1024:speed-against-peft+diffusers:attention:plain 1 >=1.05 short"),
        ({"f": (0.3, 7.0)}, "sdxl-1024:seconds-against-floor:attention:plain 1.33 <=1.08 short"),
        ({"b": (0.9, 8.8)}, "sdxl-1024:extra-memory-against-built-in:all:plain 0.8 <=0.8 ok"),
        ({"S": (0.8, 3.0)}, "flux:seconds-with-swap:attention 2 <=1.6 short"),
        ({"S": (0.6, 3.2)}, "flux:peak-with-swap:attention 0.4 <=0.35 short"),
    ],
)
def test_short_target_is_named(benchmark: SimpleNamespace, change: dict, short: str) -> None:
    """Fails if memory is compared with the weights in it where it must not be, or a slow contender passes."""
    found = benchmark.gpu_report.judge(rows(benchmark.gpu_report, **change))
    assert short in [finding.line() for finding in found]


def test_what_was_not_measured_is_not_judged(benchmark: SimpleNamespace) -> None:
    """Fails if a contender without figures gives a target, is left out of the table, or a NaN loss passes."""
    report = benchmark.gpu_report
    made = rows(report)
    for row in made:
        if row.case.who == "built-in":
            row.seconds, row.failed = [], "out of memory: 1 GiB"
    made[0].losses = [1.0, math.nan]
    found = report.judge(made)
    assert not any("built-in" in finding.name for finding in found)
    assert [finding.name for finding in found if not finding.ok] == ["sdxl-1024:losses-not-finite"]
    for markdown in (False, True):
        assert report.table(made, markdown).count("out of memory") == 3


def test_cases_are_runs_that_the_trainer_takes(benchmark: SimpleNamespace) -> None:
    """Fails if two rows have one name, an option does not exist, or a model is not there in both sizes."""
    from likeness.trainers.config import TrainingConfig

    cases = benchmark.gpu_report.CASES
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        TrainingConfig(gradient_checkpointing=case.checkpointing, **case.options).validate()
        for tiny in (False, True):
            model = benchmark.models.model_of(case.model, tiny)
            assert model.latent[-1] == (16 if tiny else 128)
    assert benchmark.models.model_of("flux").text == (512, 4096)


def test_a_dead_contender_is_a_row(benchmark: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Fails if a process that dies, or hangs, or runs out of memory, keeps the others from being measured."""
    step, real = benchmark.gpu_step, subprocess.Popen
    hello = 'print(\'{"imported": 1, "machine": "m"}\', flush=True); input(); '
    contenders = [
        "import sys; sys.exit(3)",
        "import time; time.sleep(60)",
        hello + 'print(\'{"failed": "out of memory: all"}\')',
        hello + 'print(\'{"seconds": [1.0], "losses": [null]}\')',
    ]

    def instead(command: list[str], **more: Any) -> Any:
        return real([sys.executable, "-c", contenders.pop(0)], **more)

    monkeypatch.setattr(subprocess, "Popen", instead)
    monkeypatch.setattr(step, "READY", 2.0)
    said: list[str] = []
    monkeypatch.setattr(step, "tell", said.append)
    monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--device", "cpu", "--tiny", "--out", str(tmp_path / "rows.json")])
    args = step.arguments()
    args.ahead = 0
    dead, hung, full, whole = step.conduct(benchmark.gpu_report.CASES[:4], args, str(tmp_path))
    assert "status 3" in dead.failed and "no answer" in hung.failed and full.failed == "out of memory: all"
    assert whole.seconds == [1.0] and not whole.failed and math.isnan(whole.losses[0])
    assert len(json.loads((tmp_path / "rows.json").read_text())["rows"]) == 4
    assert sum("out of memory" in line for line in said) == 1
    args.seconds = 0.0
    (late,) = step.conduct(benchmark.gpu_report.CASES[:1], args, str(tmp_path))
    assert "no time left" in late.failed


def test_without_a_device_it_says_so(
    benchmark: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fails if figures of a CPU could be taken for a GPU's."""
    monkeypatch.setattr(benchmark.gpu_step.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_step.py"])
    assert benchmark.gpu_step.main() == 2
    said = capsys.readouterr()
    assert "no CUDA device" in said.err and not said.out
    monkeypatch.setattr(sys, "argv", ["gpu_step.py", "--device", "cpu"])
    with pytest.raises(SystemExit):
        benchmark.gpu_step.main()
