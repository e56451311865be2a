#!/usr/bin/env python3
"""Runs an evaluation on a ComfyUI over HTTP and prints its table. Nothing but Python's standard library is needed.

The graph is a workflow as the page saves it, or one in the API format, with a Report (Likeness) node. What the node
shows is read from the server's /history, as any client can.

  python tools/evaluate_client.py
  python tools/evaluate_client.py --host http://gpu:8188 --workflow my_evaluation.json --format json
  python tools/evaluate_client.py --set LikenessTrainLoRA.steps=400 --set LikenessEvaluate.pictures=8

Exit status: 0 done, 1 the server refused or the run failed, 2 the command was wrong.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FORMATS = ("table", "json", "csv")


def pack(name: str) -> Any:
    """A module of the pack, loaded as experiments/run.py does, whatever the folder is called."""
    if "likeness" not in sys.modules:
        spec = importlib.util.spec_from_file_location("likeness_run", ROOT / "experiments" / "run.py")
        assert spec is not None and spec.loader is not None
        run = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(run)
        run.load_pack()
    return importlib.import_module(f"likeness.{name}")


def graph_of(path: Path, client: Any, changes: list[str]) -> dict[str, Any]:
    """The graph that the server takes, with inputs changed by NODE.input=value for every node of a type.

    Raises:
        ValueError: no graph, nodes that the server does not have, or a change that names nothing.
    """
    workflow = pack("experiments.workflow")
    try:
        read = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a workflow: {error}") from None
    graph: dict[str, Any] = workflow.to_api(read, client.object_info()) if "nodes" in read else read
    for change in changes:
        name, found, text = change.partition("=")
        kind, dot, input_ = name.partition(".")
        if not (found and dot):
            raise ValueError(f"--set takes NODE.input=value, got {change!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        workflow.set_inputs(graph, kind, **{input_: value})
    return graph


def reports(graph: dict[str, Any], outputs: dict[str, Any]) -> list[dict[str, Any]]:
    """What each report of the graph left in /history.

    Raises:
        ValueError: there is none.
    """
    found = [
        outputs[node] for node, body in graph.items() if body["class_type"] == "LikenessReport" and node in outputs
    ]
    if not found:
        raise ValueError("the graph has no Report (Likeness) node that ran: add one, and wire metrics to it")
    return found


def written(report: dict[str, Any], form: str) -> str:
    """A report as its table, or its figures as JSON or CSV."""
    if form == "table":
        return "".join(str(part) for part in report["text"])
    if form == "json":
        figures = {name: report[name] for name in ("metrics", "tests", "rows")}
        return json.dumps(figures, indent=1) + "\n"
    lines: list[str] = []
    writer = csv.DictWriter(_Lines(lines), list(report["metrics"][0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(report["metrics"])
    return "".join(lines)


class _Lines:
    """A file for csv that is a list."""

    def __init__(self, lines: list[str]) -> None:
        self.write = lines.append


def main(arguments: list[str]) -> int:
    """The command; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default="http://127.0.0.1:8188", help="address of the ComfyUI (%(default)s)")
    parser.add_argument("--workflow", type=Path, default=ROOT / "workflows" / "evaluate_subject.json", help="the graph")
    parser.add_argument("--format", choices=FORMATS, default="table", help="what is printed (%(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NODE.input=value", help="change inputs, by type")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds to wait (%(default)s)")
    chosen = parser.parse_args(arguments)
    module = pack("experiments.client")
    client = module.Client(chosen.host)

    def tell(event: Any) -> None:
        if event.kind == "executing" and event.data.get("node"):
            sys.stderr.write(f"node {event.data['node']} runs\n")

    try:
        graph = graph_of(chosen.workflow, client, chosen.set)
        run = client.run(graph, timeout=chosen.timeout, on_event=tell)
        for report in reports(graph, run.outputs):
            sys.stdout.write(written(report, chosen.format))
    except ValueError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except (module.Rejected, module.RunFailed, module.Interrupted, OSError) as error:
        sys.stderr.write(f"{chosen.host}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
