"""What counts as a step's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HOLES = """
import sys
sys.path.insert(0, sys.argv[1])
import memory
getattr(memory, sys.argv[2])()
held = [bytearray(b"x") * (200 << 10) for _ in range(400)]
full = memory.rss_mib()
held = held[::2] + [bytearray(1)]
print(full - memory.rss_mib())
"""


@pytest.mark.parametrize(("setting", "falls"), [("pages_of_their_own", True), ("keep_freed", False)])
def test_holes_count_only_with_a_heap_that_keeps_them(setting: str, falls: bool) -> None:
    """Half of 78 MiB is freed, piece by piece: fails if a peak counts it, or a timed step pays for giving it back."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("no /proc")
    folder = Path(__file__).parents[2] / "benchmarks"
    command = [sys.executable, "-c", HOLES, str(folder), setting]
    fell = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert fell > 35 if falls else fell < 5
