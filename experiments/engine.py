"""Spreads runs over hosts: each host has one run at a time and takes the next one when it is free."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

from .execute import FAILED, LOST, answers, cancel, execute
from .sweep import Run

logger = logging.getLogger(__name__)

Outcome = dict[str, Any]  # `execute`'s
ATTEMPTS = 2  # of a run whose host went away: it may be what kills them


class Engine(Protocol):
    """Where runs are executed. A slot is a host that takes one run at a time; a ticket stands for a started run."""

    @property
    def slots(self) -> Sequence[str]: ...

    def start(self, slot: str, run: Run) -> Any: ...

    def wait(self, tickets: Iterable[Any]) -> list[Any]:
        """Those that have ended; waits until at least one has."""
        ...

    def outcome(self, ticket: Any) -> Outcome: ...

    def alive(self, slot: str) -> bool: ...

    def close(self, busy: Sequence[str]) -> None:
        """Cancel what still runs on these slots, and let go."""
        ...


class Threads:
    """One thread a host address. `sized`: see `execute`."""

    def __init__(self, hosts: Sequence[str], timeout: float, sized: Sequence[str] = ()) -> None:
        self.slots: Sequence[str] = list(dict.fromkeys(host.rstrip("/") for host in hosts))
        if not self.slots:
            raise ValueError("a sweep needs at least one host's address, such as http://127.0.0.1:8188")
        self.timeout, self.sized = timeout, tuple(sized)
        self._pool = ThreadPoolExecutor(len(self.slots), thread_name_prefix="sweep")

    def start(self, slot: str, run: Run) -> Future[Outcome]:
        return self._pool.submit(execute, slot, run.graph, self.timeout, self.sized)

    def wait(self, tickets: Iterable[Future[Outcome]]) -> list[Future[Outcome]]:
        return list(wait(list(tickets), return_when=FIRST_COMPLETED).done)

    def outcome(self, ticket: Future[Outcome]) -> Outcome:
        return ticket.result()

    def alive(self, slot: str) -> bool:
        return answers(slot)

    def close(self, busy: Sequence[str]) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for slot in busy:
            cancel(slot)  # or the thread would wait for the run to end


def spread(runs: Sequence[Run], engine: Engine, on_done: Callable[[Run, Outcome], None]) -> list[Run]:
    """Execute the runs in order, each on the next free host; `on_done` gets each outcome, done or failed.

    A run whose host went away goes back to the head of the queue, and the host is not used again. A run that has
    seen `ATTEMPTS` hosts go counts as failed.

    Returns:
        The runs that were not executed because no host was left.
    """
    waiting, free, busy = deque(runs), list(engine.slots), dict[Any, tuple[str, Run]]()
    tries: Counter[str] = Counter()
    try:
        while busy or (waiting and free):
            while waiting and free:
                slot, run = free.pop(0), waiting.popleft()
                busy[engine.start(slot, run)] = (slot, run)
            for ticket in engine.wait(busy):
                slot, run = busy.pop(ticket)
                outcome = engine.outcome(ticket)
                if outcome["status"] != LOST or engine.alive(slot):
                    free.append(slot)
                if outcome["status"] == LOST:
                    tries[run.key] += 1
                    logger.warning("%s was lost during run %s: %s", slot, run.key, outcome["error"]["message"])
                    if tries[run.key] < ATTEMPTS:
                        waiting.appendleft(run)
                        continue
                    outcome = {**outcome, "status": FAILED}
                on_done(run, outcome)
    finally:
        engine.close([slot for slot, _ in busy.values()])
    return list(waiting)
