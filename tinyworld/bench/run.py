"""Runs the bench: `python -m tinyworld.bench`, in the environment that `./test --setup-only` makes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...devtools.paths import HOST_BASES
from ...devtools.server import Server
from ...experiments.client import Client
from ...experiments.report import write_report
from ...experiments.store import Record
from ..split import HELD_OUT_STYLES
from ..truth import write_references
from . import library, merges, methods, protocol, results, runs

SUBJECTS = ("dolphin", "framed-picture", "battery", "peach", "radio", "canoe", "bathtub", "bat")
"""As in benchmarks/compare_merges.py: drawn by seed from the held-out ones, without those that we tuned on."""
FOLDER = HOST_BASES / "bench"


def main(given: Sequence[str]) -> int:
    """Every family's sweep, then the page. 1 where a run failed."""
    args = arguments(given)
    began = time.monotonic()
    plan, subjects = methods.SHORT if args.short else methods.LONG, SUBJECTS[: args.subjects]
    records: list[Record] = []
    with runs.serving(args) as servers:
        for subject in subjects:
            write_references(subject, servers[0].base / "input" / methods.folder(subject))
        info = Client(servers[0].address).object_info()
        for family in args.families:
            sweep = methods.FAMILIES[family](info, plan, subjects)
            found = runs.run(family, sweep, args, servers, protocol.score, protocol.SCORING)
            records += [replace(record, values={"family": family, **record.values}) for record in found]
        together = merged(args, servers, info, subjects) if args.merges else []
    rows = write_report(args.folder, records, ("family", "method"), ("subject",), title="methods on tinyworld")
    form = "short" if args.short else "long"
    runs.told(f"{form} form, {len(subjects)} subjects; {time.monotonic() - began:.0f} s in this call", rows, records)
    if not args.no_page:
        command = " ".join(["python -m tinyworld.bench", *given])
        of_merges = write_report(args.folder / "merges", together, ("method",), ("subject", "style"))
        results.write_page(rows, records, of_merges, subjects, form, command)
    return 1 if any(record.error for record in (*records, *together)) else 0


def merged(
    args: argparse.Namespace, servers: Sequence[Server], info: Mapping[str, Any], subjects: Sequence[str]
) -> list[Record]:
    """LoRAs of subjects and of held-out styles, and every way to merge them."""
    told = argparse.Namespace(
        **{"steps": 200, "style_steps": 100, "zip_steps": 100, "overlaps": [0.001], "rank": 16},
        network="likeness/tiny-unet",  # which ships
    )
    styles = HELD_OUT_STYLES[:1] if args.short else HELD_OUT_STYLES
    for kind, labels in (("subject", subjects), ("style", styles)):
        library.write_pictures(servers[0].base, kind, merges.PAIRS, labels)
        runs.run(f"of-{kind}s", library.teaching(info, told, kind, merges.PAIRS, labels), args, servers)
    found: list[Record] = []
    for family in ("direct", "rar") if args.short else ("direct", "zip", "rar"):
        sweep = merges.FAMILIES[family](info, told, subjects, styles)
        found += runs.run(f"merges-{family}", sweep, args, servers, merges.score, merges.SCORING)
    return found


def arguments(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tinyworld.bench", description=__doc__)
    parser.add_argument(
        "--short", action="store_true", help="2 subjects and fewer methods; under 15 minutes on 2 cores"
    )
    parser.add_argument("--subjects", type=int, default=0, help=f"how many, of {len(SUBJECTS)}; 0: all, short: 2")
    parser.add_argument(
        "--families", type=_families, default=list(methods.FAMILIES), help="of these alone, with commas"
    )
    parser.add_argument("--no-merges", dest="merges", action="store_false", help="leave merges of LoRAs out")
    parser.add_argument("--no-page", action="store_true", help="leave RESULTS.md as it is")
    runs.run_arguments(parser, FOLDER)
    parser.set_defaults(servers=min(2, os.cpu_count() or 1))
    args = parser.parse_args(given)
    args.subjects = args.subjects or (2 if args.short else len(SUBJECTS))
    if args.short and args.folder == FOLDER:
        args.folder = FOLDER.with_name(FOLDER.name + "-short")
    if not 1 <= args.subjects <= len(SUBJECTS):
        parser.error(f"--subjects must be 1 to {len(SUBJECTS)}, got {args.subjects}")
    return args


def _families(text: str) -> list[str]:
    chosen = [part.strip() for part in text.split(",") if part.strip()]
    if unknown := set(chosen) - methods.FAMILIES.keys():
        raise argparse.ArgumentTypeError(f"no family is called {', '.join(sorted(unknown))}")
    return chosen


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
