"""Peak extra memory of this process: VmHWM against VmRSS, from /proc/self (Linux)."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

MIB = 1024.0


def _status(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return float(line.split()[1]) / MIB
    raise ValueError(f"/proc/self/status has no {field}")


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
