"""A synchronous client of ComfyUI's HTTP and websocket interface, on the standard library alone.

client = Client("http://127.0.0.1:8188")
run = client.run(graph, on_event=print)        # graph in the API format
picture = client.view(run.files()[0])          # the bytes of the first file it saved
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from .websocket import SocketClosed, WebSocket

Graph = Mapping[str, Mapping[str, Any]]


class Rejected(RuntimeError):
    """The server refused to queue a graph. `node_errors` holds what it said, by node id."""

    def __init__(self, message: str, node_errors: dict[str, Any]) -> None:
        super().__init__(message)
        self.node_errors = node_errors


class RunFailed(RuntimeError):
    """A node raised an error. `node_id`, `node_type`, `exception_type` and `traceback` say where and how."""

    def __init__(self, details: Mapping[str, Any]) -> None:
        self.node_id = str(details.get("node_id", ""))
        self.node_type = str(details.get("node_type", ""))
        self.exception_type = str(details.get("exception_type", ""))
        self.exception_message = str(details.get("exception_message", "")).strip()
        self.traceback = "".join(details.get("traceback", []))
        super().__init__(f"{self.node_type} (node {self.node_id}): {self.exception_type}: {self.exception_message}")


class Interrupted(RuntimeError):
    """The run was cancelled."""


@dataclass(frozen=True)
class Event:
    """One message of the server: a JSON message (`kind`, `data`) or a preview picture (`kind` "preview", `data`
    empty, `payload` the bytes after the event's type: 4 bytes of format, then a JPEG or PNG)."""

    kind: str
    data: dict[str, Any] = field(default_factory=dict)
    payload: bytes = b""


@dataclass(frozen=True)
class Run:
    """A finished run: its prompt id, the outputs by node id, the whole history entry, and every event seen."""

    prompt_id: str
    outputs: dict[str, dict[str, Any]]
    history: dict[str, Any]
    events: tuple[Event, ...]
    seconds: float

    def files(self, node_id: str | None = None) -> list[dict[str, str]]:
        """The pictures that the run saved or previewed ({filename, subfolder, type}), of one node or of all."""
        chosen = [self.outputs.get(node_id, {})] if node_id is not None else list(self.outputs.values())
        return [item for output in chosen for item in output.get("images", [])]

    def text(self, node_id: str) -> str:
        """What a node showed as text."""
        return "".join(str(part) for part in self.outputs.get(node_id, {}).get("text", []))


class Client:
    """Talks to one server. `client_id` is whom the server sends the progress to."""

    def __init__(self, address: str, client_id: str | None = None) -> None:
        self.address = address.rstrip("/")
        self.client_id = client_id or uuid.uuid4().hex

    # -- plain requests -----------------------------------------------------------------------------------------
    def request(self, path: str, payload: Any = None, timeout: float = 60.0) -> bytes:
        """GET `path`, or POST `payload` as JSON to it."""
        data = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(f"{self.address}{path}", data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return bytes(answer.read())

    def get(self, path: str) -> Any:
        return json.loads(self.request(path))

    def object_info(self, node_id: str = "") -> dict[str, Any]:
        """The schemas of all nodes, or of one."""
        return dict(self.get(f"/object_info/{node_id}" if node_id else "/object_info"))

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        entry = self.get(f"/history/{prompt_id}").get(prompt_id)
        return dict(entry) if entry else None

    def queue_state(self) -> dict[str, Any]:
        """{"queue_running": […], "queue_pending": […]}"""
        return dict(self.get("/queue"))

    def interrupt(self) -> None:
        """Cancel what runs now."""
        self.request("/interrupt", {})

    def alive(self) -> bool:
        """Whether the server answers."""
        try:
            self.request("/system_stats", timeout=10)
        except (OSError, HTTPException):
            return False
        return True

    def model_sizes(self, folder: str = "loras") -> dict[str, int]:
        """Size in bytes of every file in a models folder, by its name below that folder."""
        found = self.get(f"/experiment/models/{urllib.parse.quote(folder)}")
        return {str(file["name"]).replace("\\", "/"): int(file["size"]) for file in found}

    def free(self) -> None:
        """Ask the server to unload its models and forget its cached outputs before the next run."""
        self.request("/free", {"unload_models": True, "free_memory": True})

    def view(self, file: Mapping[str, str]) -> bytes:
        """The bytes of a file in the server's output, input or temp folder: {filename, subfolder, type}."""
        query = urllib.parse.urlencode({"subfolder": "", "type": "output", **file})
        return self.request(f"/view?{query}")

    def upload(self, path: Path, subfolder: str = "", overwrite: bool = True) -> dict[str, str]:
        """Put a picture into the server's input folder."""
        mark = uuid.uuid4().hex
        fields = {"subfolder": subfolder, "type": "input", "overwrite": "true" if overwrite else "false"}
        body = b"".join(
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
            for name, value in fields.items()
        )
        body += f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'.encode()
        body += b"Content-Type: application/octet-stream\r\n\r\n" + path.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        head = {"Content-Type": f"multipart/form-data; boundary={mark}"}
        request = urllib.request.Request(f"{self.address}/upload/image", body, head)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.loads(answer.read()))

    def queue(self, graph: Graph, workflow: Mapping[str, Any] | None = None) -> str:
        """Queue a graph in the API format; gives the prompt id. `workflow` (UI format) is stored in the pictures.

        Raises:
            Rejected: the server found the graph invalid; the message names each node, input and reason.
        """
        payload: dict[str, Any] = {"prompt": graph, "client_id": self.client_id}
        if workflow is not None:
            payload["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        try:
            return str(json.loads(self.request("/prompt", payload))["prompt_id"])
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            try:
                answer = json.loads(text)
            except json.JSONDecodeError:
                answer = {"error": {"message": text}}
            raise Rejected(_reasons(answer), dict(answer.get("node_errors") or {})) from None

    # -- runs ---------------------------------------------------------------------------------------------------
    def connect(self) -> WebSocket:
        """Open the websocket on which the server tells this client about its runs."""
        return WebSocket(f"{self.address}/ws?clientId={self.client_id}")

    def run(
        self,
        graph: Graph,
        *,
        timeout: float = 600.0,
        on_event: Callable[[Event], None] | None = None,
        workflow: Mapping[str, Any] | None = None,
    ) -> Run:
        """Queue a graph and follow it to its end. `on_event` may call `interrupt()`.

        Raises:
            Rejected, RunFailed, Interrupted: see there.
            TimeoutError: it did not end within `timeout` seconds (it still runs on the server).
        """
        socket = self.connect()  # before queueing, so that no event is missed
        try:
            start = time.monotonic()
            prompt_id = self.queue(graph, workflow)
            events: list[Event] = []
            while True:
                left = timeout - (time.monotonic() - start)
                if left <= 0:
                    raise TimeoutError(f"the run did not end within {timeout:.0f} s")
                try:
                    event = parse_event(socket.receive(left))
                except SocketClosed:
                    raise ConnectionError("the server went away during the run") from None
                if event.kind not in ("preview", "") and event.data.get("prompt_id", prompt_id) != prompt_id:
                    continue  # somebody else's run
                if event.kind == "executing" and "prompt_id" not in event.data:
                    continue  # told on connecting: what the run before is at, which may still be ending
                events.append(event)
                if on_event is not None:
                    on_event(event)
                if event.kind == "execution_error":
                    raise RunFailed(event.data)
                if event.kind == "execution_interrupted":
                    raise Interrupted(f"cancelled in node {event.data.get('node_id')}")
                if event.kind == "execution_success":
                    break
            history = self._history_when_written(prompt_id)
            return Run(prompt_id, history.get("outputs", {}), history, tuple(events), time.monotonic() - start)
        finally:
            socket.close()

    def _history_when_written(self, prompt_id: str) -> dict[str, Any]:
        # "execution_success" is sent a moment before the entry is stored
        for _ in range(100):
            entry = self.history(prompt_id)
            if entry is not None:
                return entry
            time.sleep(0.05)
        raise TimeoutError(f"the server has no history of {prompt_id}")


def parse_event(message: str | bytes) -> Event:
    """One websocket message as an Event. Binary messages begin with their type, a big-endian uint32 (1: preview)."""
    if isinstance(message, bytes):
        number = int.from_bytes(message[:4], "big")
        return Event("preview" if number in (1, 4) else "text" if number == 3 else "", {}, message[4:])
    parsed = json.loads(message)
    return Event(str(parsed.get("type", "")), dict(parsed.get("data") or {}))


def _reasons(answer: Mapping[str, Any]) -> str:
    """The server's answer to a bad graph, in one readable text."""
    error = answer.get("error")
    head = error if isinstance(error, str) else " ".join(str((error or {}).get(k, "")) for k in ("message", "details"))
    lines = [head.strip() or "the server refused the graph"]
    for node_id, node in (answer.get("node_errors") or {}).items():
        for reason in node.get("errors", []):
            lines.append(f"{node.get('class_type')} (node {node_id}): {reason.get('message')}: {reason.get('details')}")
    return "\n".join(lines)
