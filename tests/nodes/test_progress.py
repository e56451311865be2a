from __future__ import annotations

import builtins
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.host


def test_text_goes_to_the_server_that_runs(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a node's text does not reach the page, or goes to another client than the one that asked."""
    from likeness.nodes.host.interrupt import Interrupt
    from likeness.nodes.host.progress import Reporter

    said: list[tuple[str, str, str]] = []
    running = ModuleType("server")
    running.PromptServer = SimpleNamespace(  # type: ignore[attr-defined]
        instance=SimpleNamespace(client_id="page", send_progress_text=lambda *words: said.append(words))
    )
    monkeypatch.setitem(sys.modules, "server", running)
    Reporter(3, "7", Interrupt()).text("encoding")
    assert said == [("encoding", "7", "page")]


def test_without_a_server_nothing_is_imported(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if each step looks for a server that is not there: an import that fails is tried anew, in 10 ms."""
    from likeness.nodes.host.interrupt import Interrupt
    from likeness.nodes.host.progress import Reporter

    monkeypatch.delitem(sys.modules, "server", raising=False)
    real, asked = builtins.__import__, list[str]()

    def watched(name: str, *rest: Any, **more: Any) -> Any:
        asked.append(name)
        return real(name, *rest, **more)

    reporter = Reporter(3, "7", Interrupt())
    monkeypatch.setattr(builtins, "__import__", watched)
    reporter.text("encoding")
    assert "server" not in asked
