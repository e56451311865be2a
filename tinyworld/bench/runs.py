"""What the bench and benchmarks share that are sweeps of graphs over held-out subjects, on a ComfyUI of their own."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ...devtools.checkpoint import link_checkpoint, link_hypernetwork
from ...devtools.demo import device_flags
from ...devtools.paths import host_path
from ...devtools.server import HEADLESS_FLAGS, Server, make_base
from ...experiments import conduct, table
from ...experiments.engine import Threads
from ...experiments.scoring import Finished
from ...experiments.statistics import by_unit
from ...experiments.store import Record, Store
from ...experiments.sweep import Sweep


class Finding(Protocol):
    """A figure against its target."""

    ok: bool

    def line(self) -> str:
        """As it is printed."""


def run_arguments(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Add what every such benchmark is asked."""
    parser.add_argument("--folder", type=Path, default=folder, help="runs, LoRAs, tables and plots")
    parser.add_argument("--servers", type=int, default=1, help="ComfyUIs side by side, a run each")
    parser.add_argument("--threads", type=int, default=1, help="of each of them")
    parser.add_argument("--retry-failed", action="store_true")
    parser.add_argument("--changed", action="store_true", help="the folder's runs were made with other settings: anew")


@contextmanager
def serving(args: argparse.Namespace) -> Iterator[list[Server]]:
    """ComfyUIs with tiny-unet in `args.folder` that share models and inputs, and end with this process, however."""
    signal.signal(signal.SIGTERM, _stop)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(args.threads)
    first = make_base(args.folder / "base")
    link_checkpoint(first)
    link_hypernetwork(first)
    bases = [first, *(_beside(first, number) for number in range(2, args.servers + 1))]
    servers = [Server(host_path(), base, flags=(*device_flags(), *HEADLESS_FLAGS)) for base in bases]
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(Server.start, servers))
        yield servers


def _beside(first: Path, number: int) -> Path:
    """Another base, with the models and inputs of the first one."""
    base = first.with_name(f"{first.name}-{number}")
    base.mkdir(exist_ok=True)
    for shared in ("models", "input"):
        if not (base / shared).exists():
            (base / shared).symlink_to((first / shared).resolve(), target_is_directory=True)
    found: Path = make_base(base)
    return found


def run(
    family: str,
    sweep: Sweep,
    args: argparse.Namespace,
    servers: Sequence[Server],
    scorer: Callable[[Finished], dict[str, float]] | None = None,
    scoring: str = "",
) -> list[Record]:
    """The records of a sweep, each run told as it ends. Exits where ComfyUI went away."""
    print(f"== {family}: {len(sweep.runs())} runs", flush=True)
    ended = conduct.conduct(
        sweep,
        Store(args.folder / family),
        Threads([server.address for server in servers], sweep.timeout, ["save"] if "save" in sweep.graph else []),
        scorer=scorer,
        scoring=scoring,
        retry_failed=args.retry_failed,
        accept_change=args.changed,
        on_run=_say,
    )
    if ended.left:
        sys.exit("\n".join(["ComfyUI ended; the same command goes on.", *(each.log_tail() for each in servers)]))
    return ended.records


def told(head: str, rows: Sequence[table.Row], records: Sequence[Record]) -> None:
    """Print the table below its head, and which runs failed."""
    print(f"\n{head}\n\n{table.to_markdown(rows)}")
    for record in conduct.failed(records):
        print(f"{record.status} {record.values}: {record.error.get('message', '')}", file=sys.stderr)


def exit_code(findings: Sequence[Finding], records: Sequence[Record]) -> int:
    """Print a line a goal; 0 where all are met and no run failed."""
    for finding in findings:
        print(finding.line())
    return 0 if findings and all(finding.ok for finding in findings) and not conduct.failed(records) else 1


def by_subject(records: Sequence[Record], method: str, result: str) -> dict[Hashable, float]:
    """Subject -> the mean of a method's result over its other repeats."""
    having = [record for record in records if record.values["method"] == method and result in record.results]
    return by_unit([r.results[result] for r in having], [r.values["subject"] for r in having])


def _stop(number: int, frame: object) -> None:
    raise KeyboardInterrupt  # so that the server is stopped too


def _say(number: int, count: int, record: Record) -> None:
    figures = ", ".join(f"{name} {value:.3g}" for name, value in record.results.items())
    values = " ".join(str(value) for value in record.values.values())
    print(f"[{number}/{count}] {values}: {figures or record.error.get('message', '')}", flush=True)
