"""The same sweep on a Ray cluster: every node of it runs a ComfyUI, and each run is a task on one of them.

Optional: `pip install "ray>=2.9"`, the pack's extra `ray`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from . import client, websocket
from . import execute as execute_module
from .engine import Outcome
from .sweep import Run

INSTALL = 'pip install "ray>=2.9"'
LOCAL_HOST = "http://127.0.0.1:8188"


class RayTasks:
    """An `Engine` on a Ray cluster.

    Args:
        address: the cluster's: "auto", "ray://head:10001", "host:6379", or "local" for one in this process.
        hosts: addresses of ComfyUI as each Ray node sees them; `LOCAL_HOST` where none is given.
        timeout, sized: see `execute`.

    Raises:
        ValueError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, hosts: Sequence[str], timeout: float, sized: Sequence[str] = ()) -> None:
        try:
            import ray
        except ImportError:
            raise ValueError(f"--ray needs Ray, which is not installed: run `{INSTALL}`") from None
        self._ray = ray
        try:
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True)
        except (ConnectionError, RuntimeError) as error:
            raise ValueError(f"there is no Ray cluster at {address!r}: {error}") from None
        # Workers have no module of this name: the pack is loaded under a name that only this process knows.
        for module in (websocket, client, execute_module):
            ray.cloudpickle.register_pickle_by_value(sys.modules[module.__name__])
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        addresses = list(dict.fromkeys(host.rstrip("/") for host in hosts or [LOCAL_HOST]))
        self._places = {f"{host} on {node[:8]}": (node, host) for node in nodes for host in addresses}
        self.timeout, self.sized = timeout, tuple(sized)
        self.slots: Sequence[str] = [slot for slot in self._places if self.alive(slot)]
        if not self.slots:
            raise ValueError(f"none of the cluster's {len(nodes)} nodes has a ComfyUI at {', '.join(addresses)}")

    def start(self, slot: str, run: Run) -> Any:
        node, host = self._places[slot]
        return self._on(node, execute_module.execute).remote(host, run.graph, self.timeout, self.sized)

    def wait(self, tickets: Iterable[Any]) -> list[Any]:
        return list(self._ray.wait(list(tickets), num_returns=1)[0])

    def outcome(self, ticket: Any) -> Outcome:
        try:
            return dict(self._ray.get(ticket))
        except self._ray.exceptions.RayError as error:  # the node is gone, and its ComfyUI with it
            return {"status": execute_module.LOST, "error": {"message": str(error)}}

    def alive(self, slot: str) -> bool:
        node, host = self._places[slot]
        try:
            return bool(self._ray.get(self._on(node, execute_module.answers).remote(host), timeout=60))
        except self._ray.exceptions.RayError:
            return False

    def close(self, busy: Sequence[str]) -> None:
        for slot in busy:
            node, host = self._places[slot]
            self._on(node, execute_module.cancel).remote(host)
        self._ray.shutdown()

    def _on(self, node: str, function: Any) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
        return self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(function)
