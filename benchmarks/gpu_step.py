"""What a training step costs on a GPU, of the whole SDXL and Flux at 1024²: seconds and GiB.

    .venv/bin/python benchmarks/gpu_step.py [--quick] [--markdown] [--models sdxl-1024 flux] [--out rows.json]
    .venv/bin/python benchmarks/gpu_step.py --device cpu --tiny      # toy sizes on a CPU: does it run?

The contenders of train_step.py with their own loops, each in a process of its own, one after another, the device to
itself: bf16 base of random weights drawn on the device, rank 16, batch 1, AdamW. Each row is printed as soon as it is
there; what --seconds leave no time for is named. Ends with a line a target, `name figure target ok|short`, and exit
status 1 if one is short, 2 where there is no CUDA device. See README.md for what is and is not matched.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_report
import report
import torch
from gpu_report import CASES, Case, Row
from train_step import begun, ended

HERE = Path(__file__).resolve().parent
READY = 120.0
"""Seconds that a contender may take to import, once those before it are measured."""
LEAST = 20.0
"""Seconds that must be left to begin with a contender."""
LATE = "not measured: no time left"
GRACE = 30.0
"""Seconds that a contender whose time is over has to finish its step and to say so."""


class Child:
    """A contender's process. It imports at once, and goes on when told to."""

    def __init__(self, case: Case, args: argparse.Namespace, folder: str, number: int) -> None:
        self.case, self.limit = case, args.row_seconds + GRACE
        self.log = Path(folder) / f"{number}.log"
        told = {
            "job": {
                "who": case.who,
                "model_name": case.model,
                "targets": case.targets,
                "checkpointing": case.checkpointing,
                "steps": args.warmup + args.steps + 1,  # the last one ends in what a run's end costs
                "rank": args.rank,
                "alpha": 1.0,  # the built-in node knows no other
                "lr": 1e-4,
                "seed": 0,
                "threads": args.threads,
                "folder": folder,
                "base": "bf16",
                "files": False,
                "tiny": args.tiny,
                "options": case.options,
            },
            "device": args.device,
            "stored": case.stored,
            "leave": args.leave,
            "warmup": args.warmup,
            "seconds": args.row_seconds,
        }
        self.process = begun(HERE / "gpu_contender.py", told, self.log)
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next thing it says; {"failed": …} if it died, or said nothing for so long."""
        try:
            line = self._lines.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return {"failed": f"no answer within {seconds:.0f} s"}
        if not line:
            self.process.wait()
            end = " ".join(self.log.read_text(errors="replace").split())[-300:]
            return {"failed": f"died with status {self.process.returncode}: {end}"}
        return dict(json.loads(line))

    def go(self) -> None:
        """It may have the device now."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it died, and the next hear() says so

    def stop(self) -> None:
        ended(self.process)


def conduct(cases: Sequence[Case], args: argparse.Namespace, folder: str) -> list[Row]:
    """Measure them one after another, while the next ones import; a row each, until the time is over."""
    deadline = time.monotonic() + args.seconds
    waiting = list(enumerate(cases))
    children: list[Child] = []
    rows: list[Row] = []
    known = ""
    try:
        while waiting or children:
            while waiting and len(children) <= args.ahead and deadline - time.monotonic() > LEAST:
                number, case = waiting.pop(0)
                children.append(Child(case, args, folder, number))
            if not children:
                rows += [Row(case, failed=LATE) for _, case in waiting]
                break
            child = children.pop(0)
            try:
                row, machine = measure(child, deadline)
            finally:
                child.stop()
            if machine and not known:
                known = machine
                tell(known + ".")
            tell(f"[{args.seconds - (deadline - time.monotonic()):.0f} s] {row.line()}")
            rows.append(row)
            if args.out:
                args.out.write_text(json.dumps({"machine": known, "rows": [each.plain() for each in rows]}, indent=1))
            if args.logs and (row.failed or not row.seconds):
                tell(child.log.read_text(errors="replace")[-3000:])
    finally:
        for child in children:
            child.stop()
    return rows


def measure(child: Child, deadline: float) -> tuple[Row, str]:
    """A contender's row and its machine."""
    row = Row(child.case)
    left = deadline - time.monotonic()
    if left < LEAST:
        row.failed = LATE
        return row, ""
    hello = child.hear(min(READY, left))
    if "failed" in hello:
        row.failed = str(hello["failed"])
        return row, ""
    child.go()
    found = child.hear(min(child.limit, deadline - time.monotonic()))
    for name in ("seconds", "layers", "weights", "peak", "reserved", "loading", "notes", "failed"):
        setattr(row, name, found.get(name, getattr(row, name)))
    row.losses = [float("nan") if loss is None else loss for loss in found.get("losses", [])]
    row.estimate = found.get("estimate_gib") or 0.0
    return row, str(hello["machine"])


def tell(line: str) -> None:
    """At once: whoever stops this has what was measured so far."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    args = arguments()
    if args.device == "cuda" and not args.list and not torch.cuda.is_available():
        sys.stderr.write("gpu_step.py: there is no CUDA device here, so nothing was measured.\n")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that contenders are stopped then too
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    cases = [case for case in CASES if case.model in args.models and (case.first or not args.quick)]
    if args.leave:
        cases = [case for case in cases if case.mode == gpu_report.SWAP]
    if args.rows:
        cases = [cases[number] for number in args.rows if number < len(cases)]
    elif not args.list:
        cases = [case for case in cases if not case.asked]
    if args.list:
        tell("\n".join(f"{number} {case.name}" for number, case in enumerate(cases)))
        return 0
    with tempfile.TemporaryDirectory(prefix="gpu-step-") as folder:
        rows = conduct(cases, args, folder)
    findings = gpu_report.judge(rows)
    plan = f"{args.steps} steps after {args.warmup} to warm up, rank {args.rank}, batch 1"
    tell(f"\n{plan}; {time.monotonic() - began:.0f} s in all.\n\n{gpu_report.table(rows, args.markdown)}\n")
    tell(gpu_report.PUBLISHED + "\n")
    for row in rows:
        if row.failed:
            tell(f"{'incomplete' if row.seconds else 'no figures'}: {row.case.name}: {row.failed}")
    tell(report.targets_met(findings, args.markdown))
    return 0 if findings and all(finding.ok for finding in findings) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(dict.fromkeys(case.model for case in CASES))
    parser.add_argument("--quick", action="store_true", help="the most wanted contenders only, five steps each")
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--rows", nargs="+", type=int, help="only these of the chosen, from 0, in this order")
    parser.add_argument("--list", action="store_true", help="print the rows that would be measured, with their numbers")
    parser.add_argument(
        "--leave",
        type=float,
        default=0.0,
        metavar="GIB",
        help="as on a small card: all but so much of the device is taken, and the host loads the model from main "
        "memory; only the rows with all blocks swapped",
    )
    parser.add_argument("--markdown", action="store_true", help="print the tables as in README.md")
    parser.add_argument("--out", type=Path, help="write all rows here as JSON, anew after each")
    parser.add_argument("--seconds", type=float, default=450.0, help="after these no contender is begun or waited for")
    parser.add_argument("--row-seconds", type=float, default=60.0, help="after these a contender stops early")
    parser.add_argument("--warmup", type=int, help="steps that are not timed (default: 3; quick: 2)")
    parser.add_argument("--steps", type=int, help="steps that are timed (default: 10; quick: 5)")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--ahead", type=int, default=3, help="processes that import while one is measured")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try this script out; no figures of use")
    parser.add_argument("--logs", action="store_true", help="print the end of a failed contender's log")
    args = parser.parse_args()
    args.warmup = args.warmup or (2 if args.quick else 3)
    args.steps = args.steps or (5 if args.quick else 10)
    if args.device == "cpu" and not args.tiny:
        parser.error("the whole models are too much for a CPU: add --tiny")
    return args


if __name__ == "__main__":
    sys.exit(main())
