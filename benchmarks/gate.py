"""A contender's own training loop, stopped at the start of each step until the conductor lets it go.

So that contenders can be interleaved (A B C A B C …) though each runs its own unchanged loop in its own process:
whatever a step costs, from one start to the next, is between two calls of `Gate.step`.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, TextIO


@dataclass
class Gate:
    """Speaks JSON lines with the conductor; `left` steps may still run before it is asked again."""

    out: TextIO
    left: int = 0
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    started: tuple[float, float] | None = None

    def say(self, **what: Any) -> None:
        self.out.write(json.dumps(what) + "\n")
        self.out.flush()

    def step(self) -> None:
        """Call once a step, at the same place in it; returns when the step may go on."""
        wall, cpu = time.perf_counter(), time.process_time()
        if self.started is not None:
            self.wall.append(wall - self.started[0])
            self.cpu.append(cpu - self.started[1])
        if self.left == 0:
            self.say(wall=self.wall, cpu=self.cpu)
            self.wall, self.cpu = [], []
            line = sys.stdin.readline()
            if not line:
                raise SystemExit("the conductor is gone")
            self.left = int(json.loads(line)["steps"])
        self.left -= 1
        self.started = (time.perf_counter(), time.process_time())
