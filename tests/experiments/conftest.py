"""What the tests of sweeps share: a small graph of the host's own nodes, and an engine without hosts."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from PIL import Image

from likeness.experiments.engine import Outcome
from likeness.experiments.sweep import Run


def colour_graph() -> dict[str, Any]:
    """A picture of one colour, saved; its colour shown as text, too."""
    return {
        "colour": {"class_type": "PrimitiveInt", "inputs": {"value": 0}},
        "picture": {
            "class_type": "EmptyImage",
            "inputs": {"width": 16, "height": 16, "batch_size": 2, "color": ["colour", 0]},
        },
        "save": {"class_type": "SaveImage", "inputs": {"images": ["picture", 0], "filename_prefix": "sweep"}},
        "text": {"class_type": "PreviewAny", "inputs": {"source": ["colour", 0]}},
    }


class FakeEngine:
    """An `Engine` whose runs end at once. `plan` says what comes out of (slot, run): an outcome, or raises."""

    def __init__(self, slots: Sequence[str], plan: Callable[[str, Run], Outcome]) -> None:
        self.slots, self.plan = list(slots), plan
        self.started: list[tuple[str, str]] = []
        self.dead: set[str] = set()
        self.closed: list[str] | None = None

    def start(self, slot: str, run: Run) -> int:
        self.started.append((slot, run.key))
        self._outcomes = getattr(self, "_outcomes", {})
        self._outcomes[len(self.started)] = (slot, run)
        return len(self.started)

    def wait(self, tickets: Iterable[int]) -> list[int]:
        return [min(tickets)]

    def outcome(self, ticket: int) -> Outcome:
        return self.plan(*self._outcomes[ticket])

    def alive(self, slot: str) -> bool:
        return slot not in self.dead

    def close(self, busy: Sequence[str]) -> None:
        self.closed = list(busy)


def done(run: Run, text: str = "") -> Outcome:
    """The outcome of `colour_graph` with its colour in the text."""
    shown = text or str(run.graph["colour"]["inputs"]["value"])
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return {
        **{"status": "done", "host": "here", "started": "2000-01-01T00:00:00+00:00", "seconds": 1.0, "error": {}},
        **{"texts": {"text": shown}, "sizes": {}, "pictures": {"save": [("../../evil name.png", buffer.getvalue())]}},
    }


@pytest.fixture()
def graph() -> dict[str, Any]:
    return colour_graph()


@pytest.fixture()
def fake_engine() -> type[FakeEngine]:
    return FakeEngine


@pytest.fixture()
def outcome() -> Callable[..., Outcome]:
    return done
