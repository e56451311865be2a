"""Subject and style in one LoRA: every way to merge against the true picture of that subject in that style.

    .venv/bin/python benchmarks/compare_merges.py                    # 8 held-out subjects x 2 held-out styles
    .venv/bin/python benchmarks/compare_merges.py --quick            # 2 subjects x 1 style; under 5 minutes

A LoRA is taught for each subject and for each style, and both together for each pair (joint training). A hypernetwork
for LoRA.rar is taught on LoRAs of 48 other subjects and 5 other styles. Then every method merges each pair, the merged
LoRA is loaded on a real ComfyUI, and eight pictures are drawn of a prompt that has both trigger words. tinyworld has
the true picture of each pair, so no judge with an opinion is asked. Each figure has its 95% interval over subjects
(styles of a subject are averaged first):

- truth: mean cosine to the true picture of that subject in that style; pixels: root mean square distance to it;
- subject: share of the pictures that are nearest to this subject's truth, among all 45 held-out subjects in that style;
- style: share nearest to the truth in this style, among all 8 styles of that subject;
- subject similarity: mean cosine to the subject's references; style similarity: to other subjects in that style.

Killed at any time, the same command goes on. Ends with a line a goal, `name figure target ok|short`.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace

import base_model
from report import Finding

base_model.open_pack()

from likeness.devtools.paths import HOST_BASES  # noqa: E402
from likeness.experiments.client import Client  # noqa: E402
from likeness.experiments.report import write_report  # noqa: E402
from likeness.experiments.statistics import difference  # noqa: E402
from likeness.experiments.store import Record  # noqa: E402
from likeness.tinyworld.bench import library  # noqa: E402
from likeness.tinyworld.bench import merges as graphs  # noqa: E402
from likeness.tinyworld.bench import runs as sweep_runs  # noqa: E402
from likeness.tinyworld.split import HELD_OUT_STYLES  # noqa: E402

FOLDER = HOST_BASES / "compare-merges"
PARETO = {"x": "style similarity", "y": "subject similarity", "size": "megabytes", "colour": "method"}


def main() -> int:
    args = arguments()
    began = time.monotonic()
    subjects, styles = graphs.SUBJECTS[: args.subjects], HELD_OUT_STYLES[: args.styles]
    records: list[Record] = []
    with sweep_runs.serving(args) as servers:
        info = Client(servers[0].address).object_info()
        stages = [("of-{}s", graphs.PAIRS, subjects, styles)]
        if "rar" in args.families:
            stages.append(("to-learn-from-{}s", graphs.LIBRARY, library.SUBJECTS, library.STYLES))
        for name, folder, *labels in stages:
            for kind, each in zip(("subject", "style"), labels, strict=True):
                library.write_pictures(servers[0].base, kind, folder, each)
                sweep_runs.run(name.format(kind), library.teaching(info, args, kind, folder, each), args, servers)
        if "rar" in args.families:
            sweep_runs.run("hypernetwork", library.hypernetwork(info, args), args, servers)
        for family in args.families:
            sweep = graphs.FAMILIES[family](info, args, subjects, styles)
            found = sweep_runs.run(family, sweep, args, servers, graphs.score, graphs.SCORING)
            records += [replace(record, values={"family": family, **record.values}) for record in found]
    rows = write_report(
        *(args.folder, records, ("family", "method"), ("subject", "style")), pareto=PARETO, title="merges on tinyworld"
    )
    sweep_runs.told(
        f"{len(subjects)} subjects x {len(styles)} styles, {args.steps} and {args.style_steps} steps, {args.threads} "
        f"threads, {args.servers} at a time; {time.monotonic() - began:.0f} s in this call",
        rows,
        records,
    )
    return sweep_runs.exit_code(goals(records), records)


def goals(records: list[Record]) -> list[Finding]:
    """The published order: a learned merge ahead of every direct one in truth, a predicted one no worse than it.

    A difference counts when its 95% interval over subjects leaves 0 out; "no worse" when the mean is not below 0.
    """

    def truth(method: str) -> dict[object, float]:
        return sweep_runs.by_subject(records, method, "truth")

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


def names(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := set(chosen) - graphs.FAMILIES.keys():
        raise argparse.ArgumentTypeError(f"no family is called {', '.join(sorted(unknown))}")
    return chosen


def weights(text: str) -> list[float]:
    return [float(part) for part in text.split(",") if part]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 subjects, 1 style, fewer steps")
    parser.add_argument("--subjects", type=int, default=8, help=f"how many, of {len(graphs.SUBJECTS)}")
    parser.add_argument("--styles", type=int, default=len(HELD_OUT_STYLES))
    parser.add_argument("--steps", type=int, default=200, help="of a subject")
    parser.add_argument("--style-steps", type=int, default=100, help=f"of {graphs.STYLE_BATCH} pictures each")
    parser.add_argument("--zip-steps", type=int, default=100)
    parser.add_argument("--overlaps", type=weights, default=[0.001], help="λ of ZipLoRA, with commas")
    parser.add_argument("--rar-steps", type=int, default=1000)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--families", type=names, default=list(graphs.FAMILIES), help="of these alone, with commas")
    sweep_runs.run_arguments(parser, FOLDER)
    args = parser.parse_args()
    args.network = graphs.NETWORK
    if args.quick:
        args.subjects, args.styles, args.steps, args.style_steps, args.families = 2, 1, 100, 50, ["direct", "zip"]
        args.folder = args.folder.with_name(args.folder.name + "-quick")
    return args


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
