"""The run's log.jsonl, and losses that are read without waiting for the device."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import write_text


class RunLog:
    """``log.jsonl``: one line a step with step, loss and whatever else is known of it.

    Going on from step ``start`` drops the lines after it, those of steps that are about to be done again.

    Attributes:
        records: the lines, those kept from before included.
    """

    def __init__(self, path: Path, start: int) -> None:
        kept: list[str] = []
        self.records: list[dict[str, Any]] = []
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                    if record["step"] <= start:
                        kept.append(line)
                        self.records.append(record)
                except (ValueError, KeyError, TypeError):
                    continue  # the half line of a run that was killed
        write_text(path, "".join(line + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, **values: Any) -> None:
        """Add a line."""
        self.records.append(values)
        self._file.write(json.dumps(values) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LossReader:
    """Fetches each step's numbers from the device once they are there, at most one step late.

    ``Tensor.item()`` would wait for everything queued on a GPU; here the copy is queued too and an event waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._waiting: deque[tuple[int, tuple[str, ...], Tensor, Any]] = deque()

    def put(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Queue a step's numbers, scalars under their names."""
        together = torch.stack([value.detach() for value in values.values()])
        event = None
        if self._cuda:
            together = together.to("cpu", non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._waiting.append((step, tuple(values), together, event))

    def ready(self, leave: int) -> list[tuple[int, dict[str, float]]]:
        """(step, its numbers) of all that wait but the last ``leave``; on the CPU of all."""
        known: list[tuple[int, dict[str, float]]] = []
        while len(self._waiting) > (leave if self._cuda else 0):
            step, names, values, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            known.append((step, dict(zip(names, values.tolist(), strict=True))))
        return known
