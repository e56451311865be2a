"""Subject and style in one LoRA: every way to merge against the true picture of that subject in that style.

    .venv/bin/python benchmarks/compare_merges.py                    # 8 held-out subjects x 2 held-out styles
    .venv/bin/python benchmarks/compare_merges.py --quick            # 2 subjects x 1 style; under 5 minutes

A LoRA is taught for each subject and for each style, and both together for each pair (joint training). Then every
method merges each pair, the merged LoRA is loaded on a real ComfyUI, and eight pictures are drawn of a prompt that has
both trigger words. tinyworld has the true picture of each pair, so no judge with an opinion is asked. Each figure has
its 95% interval over subjects (styles of a subject are averaged first):

- truth: mean cosine to the true picture of that subject in that style; pixels: root mean square distance to it;
- subject: share of the pictures that are nearest to this subject's truth, among all 45 held-out subjects in that style;
- style: share nearest to the truth in this style, among all 8 styles of that subject;
- subject similarity: mean cosine to the subject's references; style similarity: to other subjects in that style.

Killed at any time, the same command goes on. Ends with a line a goal, `name figure target ok|short`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import base_model
from report import Finding

base_model.open_pack()

import merge_graphs as graphs  # noqa: E402, it imports the pack
from compare_ranks import say, stop  # noqa: E402

from likeness.devtools.checkpoint import link_checkpoint  # noqa: E402
from likeness.devtools.demo import device_flags  # noqa: E402
from likeness.devtools.paths import HOST_BASES, host_path  # noqa: E402
from likeness.devtools.server import HEADLESS_FLAGS, Server, make_base  # noqa: E402
from likeness.experiments import conduct, table  # noqa: E402
from likeness.experiments.client import Client  # noqa: E402
from likeness.experiments.engine import Threads  # noqa: E402
from likeness.experiments.report import write_report  # noqa: E402
from likeness.experiments.statistics import by_unit, difference  # noqa: E402
from likeness.experiments.store import Record, Store  # noqa: E402
from likeness.experiments.sweep import Sweep  # noqa: E402
from likeness.tinyworld.split import HELD_OUT_STYLES  # noqa: E402
from likeness.tinyworld.truth import write_references, write_style  # noqa: E402

FOLDER = HOST_BASES / "compare-merges"
PARETO = {"x": "style similarity", "y": "subject similarity", "size": "megabytes", "colour": "method"}


def main() -> int:
    args = arguments()
    signal.signal(signal.SIGTERM, stop)
    began = time.monotonic()
    subjects, styles = graphs.SUBJECTS[: args.subjects], HELD_OUT_STYLES[: args.styles]
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    base = make_base(args.folder / "base")
    link_checkpoint(base)
    for subject in subjects:
        write_references(subject, base / "input" / f"merges_{subject}")
    for style in styles:
        write_style(style, base / "input" / f"merges_{style}", trigger=graphs.STYLE_TRIGGER)
    records: list[Record] = []
    with Server(host_path(), base, flags=(*device_flags(), *HEADLESS_FLAGS)) as server:
        info = Client(server.address).object_info()
        for sweep in graphs.library(info, args, subjects, styles):
            if not _run(f"library of {sweep.name}s", sweep, args, server):
                return 1
        for family, make in graphs.FAMILIES.items():
            found = _run(family, make(info, args, subjects, styles), args, server, score=True)
            if not found:
                return 1
            records += [replace(record, values={"family": family, **record.values}) for record in found]
    rows = write_report(
        *(args.folder, records, ("family", "method"), ("subject", "style")), pareto=PARETO, title="merges on tinyworld"
    )
    print(f"\n{len(subjects)} subjects x {len(styles)} styles, {args.steps} and {args.style_steps} steps, ", end="")
    print(f"{args.threads} threads; {time.monotonic() - began:.0f} s in this call\n\n{table.to_markdown(rows)}")
    findings = goals(records)
    for finding in findings:
        print(finding.line())
    broken = conduct.failed(records)
    for record in broken:
        print(f"{record.status} {record.values}: {record.error.get('message', '')}", file=sys.stderr)
    return 0 if findings and all(finding.ok for finding in findings) and not broken else 1


def _run(family: str, sweep: Sweep, args: argparse.Namespace, server: Server, score: bool = False) -> list[Record]:
    """Its records; none if ComfyUI went away."""
    print(f"== {family}: {len(sweep.runs())} runs", flush=True)
    ended = conduct.conduct(
        sweep,
        Store(args.folder / family.replace(" ", "-")),
        Threads([server.address], sweep.timeout, graphs.sized(sweep)),
        **({"scorer": graphs.score, "scoring": graphs.SCORING} if score else {}),
        retry_failed=args.retry_failed,
        accept_change=args.changed,
        on_run=say,
    )
    if ended.left:
        print(f"ComfyUI ended; the same command goes on.\n{server.log_tail()}", file=sys.stderr)
        return []
    return ended.records


def goals(records: list[Record]) -> list[Finding]:
    """The published order: a learned merge ahead of every direct one in truth, a predicted one no worse than it.

    A difference counts when its 95% interval over subjects leaves 0 out; "no worse" when the mean is not below 0.
    """

    def truth(method: str) -> dict[object, float]:
        having = [r for r in records if r.values["method"] == method and "truth" in r.results]
        return by_unit([r.results["truth"] for r in having], [r.values["subject"] for r in having])  # type: ignore[return-value]

    findings = []
    merged = [name for name in graphs.DIRECT if not name.endswith("alone")]
    for method in graphs.LEARNED:
        for other in merged:
            if truth(method) and truth(other):
                paired = difference(truth(method), truth(other))
                findings.append(Finding(f"{method}-over-{other}".replace(" ", "-"), paired.low, ">0", paired.low > 0))
    if all(truth(method) for method in ("LoRA.rar", "ZipLoRA")):
        paired = difference(truth("LoRA.rar"), truth("ZipLoRA"))
        findings.append(Finding("LoRA.rar-less-ZipLoRA", paired.mean, ">=0", paired.mean >= 0))
    return findings


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 subjects, 1 style, fewer steps")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="runs, LoRAs, tables and plots")
    parser.add_argument("--subjects", type=int, default=8, help=f"how many, of {len(graphs.SUBJECTS)}")
    parser.add_argument("--styles", type=int, default=len(HELD_OUT_STYLES))
    parser.add_argument("--steps", type=int, default=200, help="of a subject")
    parser.add_argument("--style-steps", type=int, default=300)
    parser.add_argument("--zip-steps", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--changed", action="store_true", help="the folder's runs were made with other settings: anew")
    args = parser.parse_args()
    if args.quick:
        args.subjects, args.styles, args.steps, args.style_steps = 2, 1, 100, 100
        args.folder = args.folder.with_name(args.folder.name + "-quick")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
