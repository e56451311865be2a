"""A progress bar from a server's websocket events."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from ..experiments.client import Event

WIDTH = 30
LOG_EVERY = 15.0  # seconds


class Bar:
    """Call it with each event. On a terminal one line a node that is redrawn; in a log a line now and then."""

    def __init__(self, graph: Mapping[str, Mapping[str, Any]]) -> None:
        self.titles = {node: str((body.get("_meta") or {}).get("title") or node) for node, body in graph.items()}
        self.terminal = sys.stdout.isatty()
        self.node = ""
        self.begun = time.monotonic()
        self.shown = ""
        self.logged = self.begun

    def __call__(self, event: Event) -> None:
        if event.kind == "executing" and event.data.get("node"):
            self._enter(str(event.data["node"]))
        elif event.kind == "progress":
            node = str(event.data.get("node") or self.node)
            if node != self.node:
                self._enter(node)
            self._draw(int(event.data.get("value", 0)), int(event.data.get("max", 1)) or 1)

    def close(self) -> None:
        if self.terminal and self.shown:
            print(flush=True)
        self.shown = ""

    def _enter(self, node: str) -> None:
        self.close()
        self.node, self.begun = node, time.monotonic()
        self.logged = self.begun

    def _draw(self, value: int, most: int) -> None:
        part = min(max(value / most, 0.0), 1.0)
        took = time.monotonic() - self.begun
        left = took / part - took if part > 0.02 else 0.0
        full = round(part * WIDTH)
        when = f"{took:4.0f} s" if value >= most else f"{left:4.0f} s left" if left else ""
        title = self.titles.get(self.node, self.node)[:34]
        line = f"   {title:34} [{'#' * full}{'.' * (WIDTH - full)}] {value:4d}/{most:<4d} {when}"
        if self.terminal:
            print(f"\r{line:{len(self.shown)}}", end="", flush=True)
            self.shown = line
        elif value >= most or time.monotonic() - self.logged > LOG_EVERY:
            self.logged = time.monotonic()
            print(line, flush=True)
