"""Runs the test tiers one after the other; tells what each took, and ends with all counts in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from . import browser, install, lint
from .paths import ROOT, venv_python

TIERS = ("lint", "unit", "host", "browser", "quality")
CLOSING = re.compile(r"(\d+ (failed|passed|skipped|deselected|errors?)|no tests ran).* in [\d.]+s")
ELSEWHERE = {"unit": ("host", "nodes", "browser", "quality"), "host": ("browser", "quality")}  # not even collected
NO_TESTS = 5  # pytest's exit code
COUNTS = re.compile(r"(\d+) (failed|passed|skipped|deselected|xfailed|xpassed|warnings?|errors?)")


@dataclass(frozen=True)
class Outcome:
    tier: str
    ok: bool
    seconds: float
    closing: str


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
        return summary([setup, pytest_tier("chosen", extra)])
    return summary([setup, *(run_tier(tier, extra) for tier in chosen or TIERS)])


def run_tier(tier: str, extra: Sequence[str]) -> Outcome:
    install.say(f"tier: {tier}")
    if tier == "lint":
        start = time.monotonic()
        ok = lint.lint() == 0
        return Outcome(tier, ok, time.monotonic() - start, "clean" if ok else "not clean, see above")
    if tier == "browser" and browser.ensure_chromium() is None:
        reason = "SKIPPED: there is no Chromium, and no apt that may install it (LIKENESS_CHROMIUM names one)"
        print(f"\n{'!' * 100}\n!! the browser tier is {reason}\n{'!' * 100}\n", flush=True)
        return Outcome(tier, True, 0.0, reason)
    ignored = [f"--ignore=tests/{folder}" for folder in ELSEWHERE.get(tier, ())]
    return pytest_tier(tier, ["-m", tier, *ignored, *extra], may_be_empty=bool(extra))


def pytest_tier(tier: str, arguments: Sequence[str], may_be_empty: bool = False) -> Outcome:
    """Run pytest with its output shown, and keep its closing line. An empty tier fails, unless a choice made it so."""
    program = venv_python().with_name("pytest.exe" if sys.platform == "win32" else "pytest")
    command = [str(program), "-q", *arguments]  # not -m pytest: that puts the root into sys.path, and `nodes` is ours
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    start, text = time.monotonic(), b""
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 65536):
            sys.stdout.buffer.write(chunk)
            sys.stdout.flush()
            text += chunk
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
    lines = [line.strip("= ") for line in text.decode("utf-8", "replace").splitlines() if line.strip()]
    closing = next((line for line in reversed(lines) if CLOSING.search(line)), "pytest came to no end")
    ok = process.returncode == 0 or (process.returncode == NO_TESTS and may_be_empty)
    return Outcome(tier, ok, time.monotonic() - start, closing)


def summary(outcomes: Sequence[Outcome]) -> int:
    """Print a line a tier, then the sum of pytest's closing lines as pytest writes it."""
    print()
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        mark = "ok" if outcome.ok else "FAILED"
        print(f"{outcome.tier:8} {mark:6} {outcome.seconds:7.1f} s  {outcome.closing}")
        for number, what in COUNTS.findall(outcome.closing):
            counts[what.rstrip("s") if what != "passed" else what] += int(number)
    total = ", ".join(f"{counts[what]} {what}" for what in ("failed", "error", "passed", "skipped") if counts[what])
    seconds = sum(outcome.seconds for outcome in outcomes)
    failed = [outcome.tier for outcome in outcomes if not outcome.ok]
    if failed:
        print(f"failed: {', '.join(failed)}")
    print(f"===== {total or 'no tests ran'} in {seconds:.2f}s =====", flush=True)
    return 1 if failed else 0
