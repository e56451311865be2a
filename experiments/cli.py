"""The command: python experiments/run.py sweep.json --host http://127.0.0.1:8188 --folder out"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import conduct, table
from .client import Client
from .engine import Engine, Threads
from .presets import PRESETS
from .report import write_report
from .scoring import scorer_of, sized_nodes
from .store import FAILED, Record, Store, missing
from .sweep import Sweep, from_mapping, read

HOST = "http://127.0.0.1:8188"
EXAMPLE = (
    'A sweep: {"graph": "dog_api.json", "axes": {"rank": {"inputs": ["LikenessTrainLoRA.rank", '
    '"LikenessTrainLoRA.alpha"], "values": [4, 8, 16]}, "seed": {"inputs": "LikenessTrainLoRA.seed", '
    '"values": [1, 2]}}, "replicates": ["seed"], "scores": {"fidelity": {"pictures": "Save Image", '
    '"references": "photos"}}}. Workflow > Export (API) in ComfyUI saves the graph.'
)


def main(arguments: Sequence[str]) -> int:
    """0: every run is done; 1: some failed or are missing; 2: the sweep cannot be run; 130: stopped."""
    options = _parser().parse_args(arguments)
    if options.presets:
        for name, preset in PRESETS.items():
            print(f"{name:18} {preset['about']}")
        return 0
    try:
        if options.folder is None and not options.list:
            raise ValueError("say with --folder where the results go")
        return _table_only(options) if options.table else _run(options)
    except (ValueError, ConnectionError, OSError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on with what is missing")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="experiments/run.py", description="Runs a sweep; see docs/experiments.md.", epilog=EXAMPLE
    )
    parser.add_argument("sweep", nargs="?", type=Path, help="the sweep's JSON; not needed with --table")
    parser.add_argument("--folder", type=Path, help="where runs, tables and plots go")
    parser.add_argument(
        "--host", action="append", default=[], help=f"a ComfyUI's address ({HOST}); several: the runs are spread"
    )
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="a Ray cluster's address, or local; --host as its nodes see it"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run failed runs again")
    parser.add_argument("--changed", action="store_true", help="the sweep's definition was changed on purpose")
    parser.add_argument("--list", action="store_true", help="show the runs and what is missing; run nothing")
    parser.add_argument("--table", action="store_true", help="tables and plots of what the folder holds; run nothing")
    parser.add_argument("--presets", action="store_true", help="show the presets")
    return parser


def _run(options: argparse.Namespace) -> int:
    if options.sweep is None:
        raise ValueError("say which sweep to run: a JSON file, see docs/experiments.md")
    hosts = options.host or ([] if options.ray else [HOST])
    sweep = _sweep(options.sweep, hosts)
    if options.list:
        return _list(sweep, options.folder)
    engine = _engine(options, sweep, hosts)
    store, count = Store(options.folder), len(sweep.runs())
    print(f"{sweep.name}: {count} runs, {len(missing(sweep.runs(), store, options.retry_failed))} to do", flush=True)
    ended = conduct.conduct(
        sweep, store, engine, retry_failed=options.retry_failed, accept_change=options.changed, on_run=_say
    )
    _report(sweep, options.folder, ended.records)
    if ended.left:
        print(f"{ended.left} runs are left because no host answers any more; the same command goes on with them")
    return 1 if ended.left or conduct.failed(ended.records) else 0


def _sweep(path: Path, hosts: Sequence[str]) -> Sweep:
    described = read(path)
    graph = described.get("graph")
    if not isinstance(graph, dict):
        raise ValueError(f'{path} names no graph: "graph" must be the file that Workflow > Export (API) saved')
    return from_mapping(described, conduct.api_graph(graph, Client(hosts[0]) if hosts else None))


def _engine(options: argparse.Namespace, sweep: Sweep, hosts: Sequence[str]) -> Engine:
    sized = sized_nodes(sweep)
    if options.ray:
        from .ray_engine import RayTasks

        if sweep.uploads:
            raise ValueError("uploads go to hosts that this machine sees; on a Ray cluster, put the pictures there")
        return RayTasks(options.ray, hosts, sweep.timeout, sized)
    for host in hosts:
        if not Client(host).alive():
            raise ValueError(f"there is no ComfyUI at {host}: start one, or name another with --host")
        conduct.upload(Client(host), sweep.uploads)
    return Threads(hosts, sweep.timeout, sized)


def _table_only(options: argparse.Namespace) -> int:
    store = Store(options.folder)
    sweep = store.sweep()
    records = conduct.score_again(sweep, store, scorer_of(sweep), sweep.scoring())
    _report(sweep, options.folder, records)
    return 0


def _report(sweep: Sweep, folder: Path, records: Sequence[Record]) -> None:
    rows = write_report(
        *(folder, records, sweep.varied, sweep.replicates),
        interval=sweep.interval,
        pareto=sweep.pareto,
        title=sweep.name,
    )
    print(f"\n{table.to_markdown(rows)}")
    for record in conduct.failed(records):
        print(f"{record.status} {_shown(record.values)}: {record.error.get('message', '')}")
    print(f"tables and plots are in {folder}")


def _list(sweep: Sweep, folder: Path | None) -> int:
    for number, run in enumerate(sweep.runs(), 1):
        record = Store(folder).record(run.key) if folder is not None else None
        print(f"{number:4} {run.key} {record.status if record else 'missing':8} {_shown(run.values)}")
    return 0


def _say(number: int, count: int, record: Record) -> None:
    figures = ", ".join(f"{name} {value:.4g}" for name, value in record.results.items())
    ending = record.error.get("message", "").splitlines()[:1] if record.status == FAILED or record.error else [figures]
    print(f"[{number}/{count}] {record.status} {_shown(record.values)}: {''.join(ending)}", flush=True)


def _shown(values: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items()) or "(nothing is varied)"
