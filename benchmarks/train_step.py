"""What a training step costs: Likeness, the host's TrainLoraNode, peft + diffusers, and the floor, in one run.

    .venv/bin/python benchmarks/train_step.py [--quick] [--models sd15 sd15-batch4 sdxl sd3] [--markdown]

Every contender trains the same tensors on the same stream in a process of its own, with its own loop; the processes
take turns (A B C A B C …), so that a busy machine burdens all alike. Ends with a line a target,
`name figure target ok|short`, and exit status 1 if one is short. See README.md for what is and is not matched.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
from models import MODELS
from report import Row

HERE = Path(__file__).resolve().parent
STEADY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(4 << 30)}
"""glibc keeps freed memory. By default it gives the top of the heap back after some steps and not after others, and
whichever contender it happens to then pays up to 20,000 page faults in that step, 5–10% of it."""


QUICK = ["sd15", "sd3"]
"""What fits into five minutes: a UNet and a transformer."""


@dataclass(frozen=True)
class Plan:
    """Steps thrown away at the start, rounds, and steps a round of each contender."""

    warmup: int
    rounds: int
    steps: int

    @property
    def total(self) -> int:
        """One more than is timed: the last one ends in the export."""
        return self.warmup + self.rounds * self.steps + 1


def begun(script: Path, told: dict[str, Any], log: Path) -> subprocess.Popen[str]:
    """A contender's process, which speaks JSON lines; what it says besides goes into the log."""
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, str(script), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def ended(process: subprocess.Popen[str]) -> None:
    """End it, if it has not ended by itself."""
    if process.poll() is None:
        process.kill()
    process.wait()


class Child:
    """A contender's process."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.row = Row(job["who"], job["targets"], job["checkpointing"], model=job["model_name"])
        self.log = Path(job["folder"]) / f"{self.row.slug}.log"
        self.process = begun(HERE / "contender.py", job, self.log)

    def hear(self) -> dict[str, Any]:
        """The next thing it says. Raises ValueError with the end of its log if it died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise ValueError(f"{self.row.slug} died ({self.process.returncode}):\n" + self.log.read_text()[-3000:])
        return dict(json.loads(line))

    def go(self, steps: int) -> None:
        """Let it run so many steps."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
        self.process.stdin.flush()

    def stop(self) -> None:
        ended(self.process)


def start(jobs: list[dict[str, Any]]) -> list[Child]:
    """Start all at once, and wait until each stands at its first step."""
    children = [Child(job) for job in jobs]
    for child in children:
        hello = child.hear()
        child.row.loaded_mib, child.row.peak_resettable = hello["loaded_mib"], hello["peak_resettable"]
    for child in children:
        child.hear()
    return children


def conduct(jobs: list[dict[str, Any]], plan: Plan) -> list[Row]:
    """Run one group of contenders in turns. Those of Likeness start first: their peers start from their adapters."""
    children: list[Child] = []
    try:
        children += start([job for job in jobs if job["who"] != "peft+diffusers"])
        children += start([job for job in jobs if job["who"] == "peft+diffusers"])
        children.sort(
            key=lambda child: [(job["who"], job["targets"]) for job in jobs].index((child.row.who, child.row.targets))
        )
        for index in range(-1, plan.rounds):
            for child in children:
                child.go(plan.warmup if index < 0 else plan.steps)
                times = child.hear()
                if index >= 0:
                    child.row.wall.append(times["wall"])
                    child.row.cpu.append(times["cpu"])
        for child in children:
            child.go(1)
            end = child.hear()
            child.row.extra_mib, child.row.losses = end["extra_mib"], end["losses"]
            child.row.names = end.get("names", [])
            child.row.stream_differs_by = end.get("stream_differs_by", 0.0)
            child.row.mean_rank = end.get("mean_rank", 0.0)
    finally:
        for child in children:
            child.stop()
    return [child.row for child in children]


def compare(jobs: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """targets -> what equality.py found of that pair of exports."""
    found = {}
    for job in jobs:
        child = Child(job)
        try:
            child.hear()
            found[job["targets"]] = child.hear()
        finally:
            child.stop()
    return found


def run_model(name: str, plan: Plan, args: argparse.Namespace) -> tuple[list[Row], report.Equal, dict[str, Any]]:
    """All rows of one model, what equality.py found of its exports, and what prepare.py says of the machine."""
    with tempfile.TemporaryDirectory(prefix="train-step-") as folder:
        numbers = [str(number) for number in (plan.total, args.seed, args.threads)]
        prepared = subprocess.run(
            [sys.executable, str(HERE / "prepare.py"), folder, name, *numbers],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )

        def job(who: str, targets: str, checkpointing: bool) -> dict[str, Any]:
            return {
                "who": who,
                "model_name": name,
                "targets": targets,
                "checkpointing": checkpointing,
                "steps": plan.total,
                "rank": args.rank,
                "alpha": args.alpha,
                "lr": 1e-4,
                "seed": args.seed,
                "threads": args.threads,
                "folder": folder,
            }

        rows: list[Row] = []
        for checkpointing in (False,) if args.quick else MODELS[name].checkpointing:
            # Two groups, so that no more than three models are in memory at a time.
            every = [job(who, "all", checkpointing) for who in ("built-in", "peft+diffusers", "Likeness")]
            rows += conduct(every, plan)
            attention = [job(who, "attention", checkpointing) for who in ("peft+diffusers", "Likeness")]
            rows += conduct(attention + ([] if checkpointing else [job("floor", "none", False)]), plan)
        equal = compare([job("compare", targets, False) for targets in ("all", "attention")])
    return rows, equal, json.loads(prepared.stdout.splitlines()[-1])


def main() -> int:
    args = arguments()
    began = time.monotonic()
    plan = Plan(2, 4, 2) if args.quick else Plan(2, args.rounds, args.steps)
    if args.allocator == "steady":
        os.environ.update(STEADY)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    rows: list[Row] = []
    equal: dict[str, report.Equal] = {}
    machines: list[dict[str, Any]] = []
    for name in args.models or (QUICK if args.quick else list(MODELS)):
        found, equal[name], machine = run_model(name, plan, args)
        rows += found
        machines.append(machine)
    plan_line = (
        f"{plan.rounds} rounds of {plan.steps} steps after {plan.warmup} to warm up, {args.threads} threads, "
        f"rank {args.rank}, alpha {args.alpha:g}, seed {args.seed}, {args.allocator} allocator; "
        f"{time.monotonic() - began:.0f} s in all"
    )
    findings = report.judge(rows, equal)
    sys.stdout.write(report.render(rows, findings, equal, machines[0], plan_line, markdown=args.markdown))
    return 0 if all(finding.ok for finding in findings) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help=f"coarser figures, of {' and '.join(QUICK)}, without checkpointing"
    )
    parser.add_argument("--models", nargs="+", choices=list(MODELS), help="of these only (default: all)")
    parser.add_argument("--markdown", action="store_true", help="print the tables as in README.md")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps of each contender in a round")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=1.0, help="the built-in node knows no other than 1")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--allocator",
        choices=("steady", "default"),
        default="steady",
        help="steady: glibc's malloc keeps freed memory, alike for all; default: as it comes",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
