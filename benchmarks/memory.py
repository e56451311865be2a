"""Peak extra memory of this process: VmHWM against VmRSS, from /proc/self (Linux)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from pathlib import Path

MIB = 1024.0


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) / MIB
    raise ValueError(f"/proc/self/status has no {field}")


_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of glibc's malloc.h


def pages_of_their_own() -> None:
    """From now on each tensor above 64 KiB has its own pages, which go with it: the resident memory is what is alive.

    By default glibc keeps freed tensors' places in its heap, and which of them fit the next tensors is chance: of two
    runs of the same work one may hold a third more.
    """
    _mallopt(_MMAP_THRESHOLD, 64 << 10)


def keep_freed() -> None:
    """From now on what is freed is kept for the next: no page faults in the time of a step."""
    _mallopt(_MMAP_THRESHOLD, 32 << 20)
    _mallopt(_TRIM_THRESHOLD, (2 << 30) - 1)


def _mallopt(what: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # another libc
        ctypes.CDLL("libc.so.6").mallopt(what, value)


def rss_mib() -> float:
    """Resident memory now, MiB."""
    return _status("VmRSS")


def peak_mib() -> float:
    """The highest resident memory since the last `reset_peak`, MiB."""
    return _status("VmHWM")


def reset_peak() -> bool:
    """Give back what is free, and start a new high-water mark; False where the kernel does not permit it."""
    gc.collect()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except OSError:
        pass  # another libc: the baseline then holds what it kept
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
