"""Following a run: which of the server's messages are this run's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from likeness.experiments.client import Client, Event


class Told:
    """In place of the websocket: what the server says, message by message."""

    def __init__(self, *messages: tuple[str, dict[str, Any]]) -> None:
        self.left = [json.dumps({"type": kind, "data": data}) for kind, data in messages]

    def receive(self, timeout: float) -> str:
        return self.left.pop(0)

    def close(self) -> None:
        assert not self.left, "the run was taken to be over before its end"


def test_a_run_hears_of_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if what is said of the run before, still ending as this one is queued, is taken for this one's.

    On connecting the host tells what node is at work, without saying in which run. A caller that cancels at that word
    would cancel nothing: the host forgets cancels when a run begins.
    """
    told = Told(
        ("status", {"status": {}}),
        ("executing", {"node": "train"}),
        ("execution_success", {"prompt_id": "before"}),
        ("executing", {"node": "train", "prompt_id": "mine"}),
        ("progress", {"node": "train", "value": 1, "prompt_id": "mine"}),
        ("execution_success", {"prompt_id": "mine"}),
    )
    client = Client("http://nowhere")
    monkeypatch.setattr(client, "connect", lambda: told)
    monkeypatch.setattr(client, "queue", lambda graph, workflow: "mine")
    monkeypatch.setattr(client, "history", lambda prompt_id: {"outputs": {}})
    heard: list[Event] = []
    client.run({}, on_event=heard.append)
    assert [event.kind for event in heard] == ["status", "executing", "progress", "execution_success"]
    assert all(event.data["prompt_id"] == "mine" for event in heard[1:])
