"""One run on one host: queue the graph, follow it, bring back what it showed. Also sent to Ray's workers as it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timezone
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .client import Client, Graph, Interrupted, Rejected, RunFailed

DONE, FAILED, LOST = "done", "failed", "lost"  # lost: the host went away, and the run may be tried on another
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def execute(address: str, graph: Graph, timeout: float, sized: Sequence[str] = ()) -> dict[str, Any]:
    """Run a graph on the host at `address`.

    Args:
        timeout: seconds; a run that takes longer is cancelled, and failed.
        sized: ids of nodes that show the path of a file in models/loras; its size is asked of the host.

    Returns:
        Plain values only: status, host, started, seconds, error, texts, sizes, and pictures {node: [(name, bytes)]}.
        Whatever goes wrong is in it; nothing is raised.
    """
    client, begun = Client(address), time.monotonic()
    outcome: dict[str, Any] = {
        "status": DONE,
        "host": address,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "error": {},
        "texts": {},
        "sizes": {},
        "pictures": {},
    }
    try:
        run = client.run(graph, timeout=timeout)
        outcome["texts"] = {node: run.text(node) for node, shown in run.outputs.items() if shown.get("text")}
        outcome["pictures"] = {
            node: [(str(file["filename"]), client.view(file)) for file in run.files(node)] for node in run.outputs
        }
        outcome["sizes"] = {node: _size(client, run.text(node).strip()) for node in sized}
    except RunFailed as error:
        outcome.update(status=FAILED, error=_said(error, error.node_type, error.node_id, error.traceback))
    except Rejected as error:
        outcome.update(status=FAILED, error=_said(error, "", ", ".join(error.node_errors)))
    except (Interrupted, ValueError) as error:
        outcome.update(status=FAILED, error=_said(error))
    except (OSError, HTTPException) as error:  # TimeoutError is one, and so is urllib's URLError
        late = isinstance(error, TimeoutError) and client.alive()
        if late:
            client.interrupt()
        outcome.update(status=FAILED if late else LOST, error=_said(error))
    outcome["seconds"] = round(time.monotonic() - begun, 3)
    return outcome


def _said(error: BaseException, node_type: str = "", node_id: str = "", traceback: str = "") -> dict[str, str]:
    message = str(error) or type(error).__name__
    return {"message": message, "node_type": node_type, "node_id": node_id, "traceback": traceback}


def _size(client: Client, path: str) -> int:
    """Bytes of the file in models/loras that a node says it wrote; of any other one only on this machine."""
    shown = path.replace("\\", "/")
    for name, size in client.model_sizes().items():
        if shown == name or shown.endswith(f"/{name}"):
            return size
    if urlsplit(client.address).hostname in _LOOPBACK and Path(path).is_file():
        return Path(path).stat().st_size
    raise ValueError(f"the host has no file {path!r} in models/loras, whose size is a result")


def answers(address: str) -> bool:
    """Whether there is a host."""
    return Client(address).alive()


def cancel(address: str) -> None:
    """Cancel what runs there now, if it is still there."""
    try:
        Client(address).interrupt()
    except OSError:
        pass
