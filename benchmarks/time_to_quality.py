"""How long until a subject is learned: Likeness at its defaults, against 400 steps of the host's TrainLoraNode.

    .venv/bin/python benchmarks/time_to_quality.py [--quick] [--markdown] [--folder FOLDER]

Each held-out subject of the small world is taught in a process of its own: by the built-in node at three learning
rates, then by ours in runs of several lengths. The clock stands while they are judged. Ends with a line a target,
`name figure target ok|short`, and exit status 1 if one is short. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quality_report
from quality_report import Subject
from train_step import HERE, STEADY

TUNED_ON = ("panda", "crown", "duck", "microscope")  # settings were found on these, so they are not scored
RATES = (5e-4, 2e-3, 8e-3)  # of the built-in node: its own default, and up to where it breaks
BEST_RATE = 2e-3  # of the three, in the full run of README.md
BUILT_IN_STEPS = 400


@dataclass(frozen=True)
class Plan:
    """Subjects, the built-in node's rates, how many steps our runs have, and seeds a prompt."""

    subjects: tuple[str, ...]
    rates: tuple[float, ...]
    ladder: tuple[int, ...]
    seeds: tuple[int, ...]


def scored(count: int, seed: int = 3) -> tuple[str, ...]:
    """Held-out subjects by seed, without those that settings were tuned on."""
    names = json.loads((HERE.parent / "tinyworld" / "split.json").read_text())["held_out_subjects"]
    return tuple(random.Random(seed).sample([name for name in names if name not in TUNED_ON], count))


def teach(job: dict[str, Any], folder: Path) -> Subject:
    """Run one subject's process; what an earlier call in the same folder finished is not done again."""
    log = folder / f"{job['subject']}.log"
    with log.open("a") as errors:
        ended = subprocess.run(
            [sys.executable, str(HERE / "quality_subject.py"), json.dumps({**job, "folder": str(folder)})],
            stdout=errors,
            stderr=errors,
            env={
                **os.environ,
                **STEADY,
                "OMP_NUM_THREADS": str(job["threads"]),
                "MKL_NUM_THREADS": str(job["threads"]),
            },
        )
    if ended.returncode:
        raise ValueError(f"{job['subject']} died ({ended.returncode}):\n{log.read_text()[-3000:]}")

    def read(name: str) -> Any:
        return json.loads((folder / f"{job['subject']}-{name}.json").read_text())

    return Subject(
        name=job["subject"],
        base=read("base")[0],
        built_in={rate: read(f"built-in-{rate:g}")[0] for rate in job["rates"]},
        ours=read(job["ours"]),
    )


def main() -> int:
    args = arguments()
    began = time.monotonic()
    if args.quick:
        plan = Plan(scored(2), (BEST_RATE,), (100, 200), (50, 51))
    else:
        rates = tuple(args.rates or RATES)
        plan = Plan(tuple(args.subjects or scored(4)), rates, tuple(range(50, 301, 50)), (50, 51))
    with tempfile.TemporaryDirectory(prefix="time-to-quality-") as temporary:
        folder = Path(args.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        subjects = [
            teach(
                {
                    "subject": name,
                    "rates": plan.rates,
                    "ladder": plan.ladder,
                    "seeds": plan.seeds,
                    "built_in_steps": BUILT_IN_STEPS,
                    "config": args.config,
                    "ours": f"ours-{args.name}",
                    "threads": args.threads,
                },
                folder,
            )
            for name in plan.subjects
        ]
    findings = quality_report.judge(subjects)
    line = (
        f"{len(subjects)} held-out subjects, {len(plan.seeds) * 4} pictures each time, {args.threads} threads"
        + (f", our settings {json.dumps(args.config)}" if args.config else "")
        + f"; {time.monotonic() - began:.0f} s in all"
    )
    sys.stdout.write(quality_report.render(subjects, findings, line, markdown=args.markdown))
    return 0 if all(finding.ok for finding in findings) else 1


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two subjects, the best of the full run's rates")
    parser.add_argument("--markdown", action="store_true", help="print the tables as in README.md")
    parser.add_argument("--folder", help="keep what is finished here, and go on from it")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--subjects", nargs="+", help="others than those that the seed picks")
    parser.add_argument("--rates", nargs="+", type=float, help="of the built-in node, other than the three; say so")
    parser.add_argument("--config", type=json.loads, default={}, help="options other than our defaults, as JSON")
    parser.add_argument("--name", default="defaults", help="what these options are called in the folder")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
