"""What the trust tests share: the judge of one hostile input, and how much memory this process ever had."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

TOYS = Path(__file__).resolve().parents[1] / "trainers" / "conftest.py"
_spec = importlib.util.spec_from_file_location("toys", TOYS)
assert _spec is not None and _spec.loader is not None
_toys = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_toys)
toy, data = _toys.toy, _toys.data  # the same fixtures as the trainers' own tests have

SECONDS = 5.0  # of CPU for one small input; the honest ones take milliseconds
LONGEST_MESSAGE = 2000


def peak_memory() -> int:
    """The most bytes this process has ever had in memory at once."""
    resource = pytest.importorskip("resource")
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass
class Judge:
    """Counts what became of the inputs of each class, and fails at the first that ended badly."""

    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    messages: dict[str, set[str]] = field(default_factory=dict)
    slowest: tuple[float, str] = (0.0, "")

    @property
    def total(self) -> int:
        return self.refused.total() + self.accepted.total()

    def read(self, kind: str, name: str, reader: Callable[[], Any]) -> Any:
        """What `reader` gives, or None where it refused with a ValueError that names the file."""
        start = time.process_time()
        try:
            result = reader()
        except ValueError as error:
            result = None
            message = str(error)
            assert type(error) is ValueError, f"{kind}: {type(error).__name__}: {message[:300]}"
            assert name in message, f"{kind}: the message does not name {name}: {message[:300]}"
            assert len(message) < LONGEST_MESSAGE, f"{kind}: a message of {len(message)} characters: {message[:300]}"
            assert message.count("\n") < 5, f"{kind}: {message[:300]}"
            self.refused[kind] += 1
            self.messages.setdefault(kind, set()).add(message)
        except BaseException as error:
            raise AssertionError(f"{kind} ({name}): {type(error).__name__}: {str(error)[:300]}") from error
        else:
            self.accepted[kind] += 1
        spent = time.process_time() - start
        self.slowest = max(self.slowest, (spent, kind))
        assert spent < SECONDS, f"{kind} took {spent:.1f} s"
        return result


@pytest.fixture()
def judge() -> Judge:
    return Judge()


@pytest.fixture(scope="session")
def peak() -> Callable[[], int]:
    """See :func:`peak_memory`."""
    return peak_memory
