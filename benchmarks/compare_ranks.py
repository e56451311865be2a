"""Rank against rank: fixed ranks, adaptive rank, AdaLoRA, and a large LoRA resized after training, on tinyworld.

    .venv/bin/python benchmarks/compare_ranks.py                     # 8 held-out subjects x 2 seeds; hours on one core
    .venv/bin/python benchmarks/compare_ranks.py --quick             # 2 subjects, 1 seed, few ranks; under 5 minutes

Every run is a graph on a real ComfyUI: train on a subject's five references, save the LoRA, draw fixed prompts with
fixed seeds. Scores, each with its 95% interval over subjects (seeds of a subject are averaged first):

- fidelity: mean cosine to the references (DreamBooth's figure; metrics.similarity);
- truth: mean cosine to the true picture of that subject in the style that was asked;
- prompt: share of the pictures whose style tinyworld's judge names as the one that was asked;
- megabytes: of the saved file.

Killed at any time, the same command goes on. Ends with a line a goal, `name figure target ok|short`: adaptive rank no
less faithful than the best fixed rank within that one's interval, in at most 40% of its file.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import base_model
from report import Finding

base_model.open_pack()

import rank_graphs as graphs  # noqa: E402, it imports the pack

from likeness.devtools.paths import HOST_BASES  # noqa: E402
from likeness.experiments import table  # noqa: E402
from likeness.experiments.client import Client  # noqa: E402
from likeness.experiments.report import write_report  # noqa: E402
from likeness.experiments.statistics import difference  # noqa: E402
from likeness.experiments.store import Record  # noqa: E402
from likeness.tinyworld.bench import runs as sweep_runs  # noqa: E402
from likeness.tinyworld.truth import write_references  # noqa: E402

FOLDER = HOST_BASES / "compare-ranks"
SHARE = 0.4  # of the best fixed rank's file
PARETO = {"x": "prompt", "y": "fidelity", "size": "megabytes", "colour": "family"}


def main() -> int:
    args = arguments()
    began, subjects = time.monotonic(), graphs.SUBJECTS[: args.subjects]
    records: list[Record] = []
    with sweep_runs.serving(args) as servers:
        for subject in subjects:
            write_references(subject, servers[0].base / "input" / f"ranks_{subject}")
        info = Client(servers[0].address).object_info()
        for family, sweep in graphs.sweeps(info, args, subjects).items():
            found = sweep_runs.run(family, sweep, args, servers, graphs.score, graphs.SCORING)
            records += [replace(record, values={"family": family, **record.values}) for record in found]
    rows = write_report(
        *(args.folder, records, ("family", "method"), ("subject", "seed")), pareto=PARETO, title="ranks on tinyworld"
    )
    sweep_runs.told(
        f"{len(subjects)} subjects x {args.seeds} seeds, {args.steps} steps, batch {args.batch}, {args.threads} "
        f"threads; {time.monotonic() - began:.0f} s in this call",
        rows,
        records,
    )
    return sweep_runs.exit_code(goals(rows, records), records)


def goals(rows: list[table.Row], records: list[Record]) -> list[Finding]:
    """Each adaptive setting against the best fixed rank, and whether one setting meets both parts of the goal."""
    fixed = [row for row in rows if row.values["family"] == "fixed" and "fidelity" in row.figures]
    adaptive = [row for row in rows if row.values["family"] == "adaptive" and "fidelity" in row.figures]
    if not fixed or not adaptive:
        return []
    best = max(fixed, key=lambda row: row.figures["fidelity"].mean)
    lowest, whole = best.figures["fidelity"].low, best.figures["megabytes"].mean
    print(f"best fixed rank: {best.values['method']}, fidelity {table.shown(best.figures['fidelity'])}, {whole:.3g} MB")
    met, findings = 0, []
    for row in adaptive:
        name, figure = str(row.values["method"]).replace(" ", "-"), row.figures["fidelity"].mean
        share = row.figures["megabytes"].mean / whole
        paired = difference(*(sweep_runs.by_subject(records, str(r.values["method"]), "fidelity") for r in (row, best)))
        print(f"{row.values['method']} less {best.values['method']}, by subject: {table.shown(paired)}")
        faithful, small = figure >= lowest, share <= SHARE  # NaN, with one subject: short
        met += faithful and small
        findings.append(Finding(f"{name}:fidelity", figure, f">={lowest:.3g}", faithful))
        findings.append(Finding(f"{name}:share-of-best-fixed-file", share, f"<={SHARE}", small))
    print("\n".join(finding.line() for finding in findings))
    return [Finding("adaptive-settings-that-meet-both", met, ">=1", met >= 1)]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",") if part]

    def shares(text: str) -> list[float]:
        return [float(part) for part in text.split(",") if part]

    parser.add_argument("--quick", action="store_true", help="2 subjects, 1 seed, ranks 1, 4, 16, 100 steps")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--subjects", type=int, default=8, help=f"how many, of {len(graphs.SUBJECTS)}")
    parser.add_argument("--seeds", type=int, default=2, help="training seeds a subject")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--alpha", type=float, default=0.0, help="the same for all; 0: the rank, and 16 for adaptive rank"
    )
    parser.add_argument("--prior", type=float, default=0.0, help="weight of prior prediction; doubles a step's time")
    parser.add_argument("--ranks", type=numbers, default=[1, 2, 4, 8, 16, 32], help="fixed ranks, e.g. 1,4,16")
    parser.add_argument("--targets", type=numbers, default=[4, 8], help="target ranks of adaptive rank; empty: none")
    parser.add_argument("--truncated", type=shares, default=[], help="energies of adaptive rank's export, e.g. 0.99")
    parser.add_argument("--adaptive", default="{}", help='more inputs of adaptive rank, as JSON: {"rank_lr": 0.01}')
    parser.add_argument("--adalora", type=numbers, default=[8], help="ranks of AdaLoRA; empty: none")
    parser.add_argument("--adalora-learning-rate", type=float, default=0.0, help="0: that of the others")
    parser.add_argument("--resized", type=numbers, default=[1, 2, 4, 8, 16], help="ranks to cut the largest one to")
    parser.add_argument("--energies", type=shares, default=[0.9], help="shares of each layer's energy to cut it to")
    sweep_runs.run_arguments(parser, FOLDER)
    args = parser.parse_args()
    if args.quick:
        args.subjects, args.seeds, args.steps = 2, 1, 100
        args.ranks, args.targets, args.resized = [1, 4, 16], [4], [4]
        args.folder = args.folder.with_name(args.folder.name + "-quick")
    if not 1 <= args.subjects <= len(graphs.SUBJECTS):
        parser.error(f"--subjects must be 1 to {len(graphs.SUBJECTS)}, got {args.subjects}")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
