"""What a training step costs when ranks adapt, against Likeness' own trainer of fixed rank, in one run.

    .venv/bin/python benchmarks/adaptive_step.py [--quick] [--markdown]

Both train the same tensors on the same stream, each in a process of its own, in turns (A B A B …). The adaptive one
begins with the other's rank and has it for its target; its ranks move at every step, and the table tells the mean that
they had. Ends with a line a target, `name figure target ok|short`, and exit status 1 if one is short.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from models import MODELS
from report import Finding, Row, _columns, _markdown, ratio
from train_step import HERE, STEADY, Plan, conduct

FIXED, ADAPTIVE = WHO = ("Likeness", "Likeness adaptive")
MOST = 1.2


def rows_of(model: str, targets: str, plan: Plan, args: argparse.Namespace, folder: str) -> list[Row]:
    """The two, in turns."""
    jobs: list[dict[str, Any]] = [
        {
            "who": who,
            "model_name": model,
            "targets": targets,
            "checkpointing": False,
            "steps": plan.total,
            "rank": args.rank,
            "alpha": float(args.rank),
            "lr": 1e-4,
            "seed": 0,
            "threads": args.threads,
            "folder": folder,
        }
        for who in WHO
    ]
    return conduct(jobs, plan)


def judge(rows: list[Row]) -> list[Finding]:
    """A target a pair: CPU seconds a step, and the two's mean ranks within a tenth, or they are no pair."""
    findings = []
    for fixed, adaptive in zip(rows[::2], rows[1::2], strict=True):
        assert (fixed.who, adaptive.who) == WHO
        name = f"{fixed.model}-{fixed.targets}"
        slower = round(ratio(adaptive, fixed), 2)
        findings.append(Finding(f"{name}-adaptive-to-fixed", slower, f"<={MOST}", slower <= MOST))
        share = round(adaptive.mean_rank / fixed.mean_rank, 2)
        findings.append(Finding(f"{name}-mean-rank-to-fixed", share, ">=0.9", share >= 0.9))
    return findings


def render(rows: list[Row], findings: list[Finding], markdown: bool) -> str:
    """The table, and the targets."""
    head = ["model", "targets", "ranks", "mean rank", "CPU s/step", "wall s/step", "extra MiB"]
    body = [
        [
            row.model,
            row.targets,
            "adaptive" if row.who == ADAPTIVE else "fixed",
            f"{row.mean_rank:.1f}",
            f"{row.seconds('cpu'):.3f}",
            f"{row.seconds('wall'):.3f}",
            f"{row.extra_mib:.0f}",
        ]
        for row in rows
    ]
    table = (_markdown if markdown else _columns)(head, body)
    return "\n".join([table, "", *(finding.line() for finding in findings), ""])


def main() -> int:
    args = arguments()
    plan = Plan(2, 4, 2) if args.quick else Plan(2, args.rounds, args.steps)
    os.environ.update(STEADY)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    rows: list[Row] = []
    for model in args.models:
        with tempfile.TemporaryDirectory(prefix="adaptive-step-") as folder:
            command = [sys.executable, str(HERE / "prepare.py"), folder, model, str(plan.total), "0", str(args.threads)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            for targets in ("attention",) if args.quick else ("attention", "all"):
                for left in Path(folder).glob("init-*"):
                    left.unlink()
                rows += rows_of(model, targets, plan, args, folder)
    findings = judge(rows)
    sys.stdout.write(render(rows, findings, args.markdown))
    return 0 if all(finding.ok for finding in findings) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="coarser figures, attention layers only")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["sd15"])
    parser.add_argument("--markdown", action="store_true", help="print the table as in README.md")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="steps of each in a round")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
