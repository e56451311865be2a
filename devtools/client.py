"""The client lies in experiments/, which ships with the pack; devtools and tests know it by this name too."""

from __future__ import annotations

from ..experiments.client import Client, Event, Graph, Interrupted, Rejected, Run, RunFailed, parse_event

__all__ = ["Client", "Event", "Graph", "Interrupted", "Rejected", "Run", "RunFailed", "parse_event"]
