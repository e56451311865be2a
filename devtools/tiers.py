"""Runs the test tiers; tells what each took, and ends with all counts in one line.

One after the other, but for most of quality, the longest: small models gain little from a second thread, so where there
are two cores its longest files, and the browser's after them, run beside the others, and their output is shown when
those are through.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import browser, install, lint
from .paths import ROOT, venv_python

TIERS = ("lint", "unit", "host", "browser", "quality")
CLOSING = re.compile(r"(\d+ (failed|passed|skipped|deselected|errors?)|no tests ran).* in [\d.]+s")
ELSEWHERE = {"unit": ("host", "nodes", "browser", "quality"), "host": ("browser", "quality")}  # not even collected
ASIDE, THEN = "quality", "browser"
LONGEST = ("tests/quality/test_personalisation.py", "tests/quality/test_prompt_following.py")  # 4 of its 5 parts
NO_TESTS = 5  # pytest's exit code
COUNTS = re.compile(r"(\d+) (failed|passed|skipped|deselected|xfailed|xpassed|warnings?|errors?)")


@dataclass(frozen=True)
class Outcome:
    tier: str
    ok: bool
    seconds: float
    closing: str


class Output:
    """Where a tier writes: to the terminal, or, while it is held back, into memory."""

    def __init__(self, held: bool = False) -> None:
        self._lock = threading.Lock()
        self._held: bytes | None = b"" if held else None

    def write(self, chunk: bytes) -> None:
        with self._lock:
            if self._held is None:
                sys.stdout.buffer.write(chunk)
                sys.stdout.flush()
            else:
                self._held += chunk

    def show(self) -> None:
        """Write what was held back, and hold nothing back from now on."""
        with self._lock:
            held, self._held = self._held, None
        self.write(held or b"")


def main(arguments: Sequence[str]) -> int:
    """`./test [--setup-only] [tier …] [arguments for pytest …]`; the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(f"usage: ./test [--setup-only] [{' | '.join(TIERS)} …] [arguments for pytest …]")
        return 0
    start = time.monotonic()
    try:
        install.ensure(test=True)
    except (install.SetupFailed, ValueError) as error:
        print(f"./test: {error}", file=sys.stderr)
        return 2
    chosen = [argument for argument in arguments if argument in TIERS]
    extra = [argument for argument in arguments if argument not in TIERS and argument != "--setup-only"]
    if "--setup-only" in arguments:
        browser.ensure_chromium()
        print(f"ready after {time.monotonic() - start:.0f} s")
        return 0
    setup = Outcome("setup", True, time.monotonic() - start, "")
    paths = [argument for argument in extra if (ROOT / argument.split("::")[0]).exists()]
    if paths and not chosen:
        outcomes = [pytest_tier("chosen", extra)]
    elif ASIDE in (tiers := chosen or list(TIERS)) and len(tiers) > 1 and cores() > 1 and not paths:
        outcomes = side_by_side(tiers, extra)
    else:
        outcomes = [run_tier(tier, extra) for tier in tiers]
    return summary([setup, *outcomes], time.monotonic() - start)


def side_by_side(tiers: Sequence[str], extra: Sequence[str]) -> list[Outcome]:
    """Quality's longest files and the browser on half of the cores, all else one after the other on the other half."""
    half, output = max(1, cores() // 2), Output(held=True)
    rest = [f"--ignore={file}" for file in LONGEST]

    def beside() -> list[Outcome]:
        longest = pytest_tier(f"{ASIDE} 1", ["-m", ASIDE, *LONGEST, *extra], bool(extra), half, output)
        return [longest, *(run_tier(tier, extra, half, output) for tier in tiers if tier == THEN)]

    with ThreadPoolExecutor(1) as pool:
        install.say(f"tier: {ASIDE}, its longest beside the others; their output comes last")
        aside = pool.submit(beside)
        outcomes = [run_tier(tier, extra, half) for tier in tiers if tier not in (ASIDE, THEN)]
        install.say(f"tier: {ASIDE}, the rest")
        outcomes.append(pytest_tier(f"{ASIDE} 2", ["-m", ASIDE, *rest, *extra], bool(extra), half))
        install.say(f"tier: {ASIDE}, its longest")
        output.show()
        return [*outcomes, *aside.result()]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tier(tier: str, extra: Sequence[str], threads: int = 0, output: Output | None = None) -> Outcome:
    """One tier, with the output shown; `threads` 0: as many as the libraries choose."""
    (output or Output()).write(f"== tier: {tier}\n".encode())
    if tier == "lint":
        start = time.monotonic()
        ok = lint.lint() == 0
        return Outcome(tier, ok, time.monotonic() - start, "clean" if ok else "not clean, see above")
    if tier == "browser" and browser.ensure_chromium() is None:
        reason = "SKIPPED: there is no Chromium, and no apt that may install it (LIKENESS_CHROMIUM names one)"
        print(f"\n{'!' * 100}\n!! the browser tier is {reason}\n{'!' * 100}\n", flush=True)
        return Outcome(tier, True, 0.0, reason)
    ignored = [f"--ignore=tests/{folder}" for folder in ELSEWHERE.get(tier, ())]
    return pytest_tier(tier, ["-m", tier, *ignored, *extra], bool(extra), threads, output)


def pytest_tier(
    tier: str, arguments: Sequence[str], may_be_empty: bool = False, threads: int = 0, output: Output | None = None
) -> Outcome:
    """Run pytest with its output shown, and keep its closing line. An empty tier fails, unless a choice made it so."""
    output = output or Output()
    program = venv_python().with_name("pytest.exe" if sys.platform == "win32" else "pytest")
    command = [str(program), "-q", *arguments]  # not -m pytest: that puts the root into sys.path, and `nodes` is ours
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if threads:
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    start, text = time.monotonic(), b""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 65536):
            output.write(chunk)
            text += chunk
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
    lines = [line.strip("= ") for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    closing = next((line for line in reversed(lines) if CLOSING.search(line)), "pytest came to no end")
    ok = process.returncode == 0 or (process.returncode == NO_TESTS and may_be_empty)
    return Outcome(tier, ok, time.monotonic() - start, closing)


def summary(outcomes: Sequence[Outcome], seconds: float) -> int:
    """Print a line a tier, then the sum of pytest's closing lines as pytest writes it; `seconds` are of the whole."""
    print()
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        mark = "ok" if outcome.ok else "FAILED"
        print(f"{outcome.tier:9} {mark:6} {outcome.seconds:7.1f} s  {outcome.closing}")
        for number, what in COUNTS.findall(outcome.closing):
            counts[what.rstrip("s") if what != "passed" else what] += int(number)
    total = ", ".join(f"{counts[what]} {what}" for what in ("failed", "error", "passed", "skipped") if counts[what])
    failed = [outcome.tier for outcome in outcomes if not outcome.ok]
    if failed:
        print(f"failed: {', '.join(failed)}")
    print(f"===== {total or 'no tests ran'} in {seconds:.2f}s =====", flush=True)
    return 1 if failed else 0
