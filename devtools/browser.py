"""Finds a Chromium for the browser tests, and installs Debian's where there is none."""

from __future__ import annotations

import os
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# quiet, offline and without a sandbox, so that it runs in a container
FLAGS = (
    "--no-sandbox",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)


def find_chromium() -> str | None:
    """The path of a Chromium or Chrome, LIKENESS_CHROMIUM first, or None."""
    named = os.environ.get("LIKENESS_CHROMIUM")
    return named or next((path for path in map(shutil.which, NAMES) if path), None)


def ensure_chromium() -> str | None:
    """Find a Chromium; install Debian's package where there is none and apt is there and allowed. None: no way."""
    found = find_chromium()
    apt = shutil.which("apt-get")
    if found or not apt:
        return found
    become = [] if hasattr(os, "geteuid") and os.geteuid() == 0 else ["sudo", "-n"]
    if become and not shutil.which("sudo"):
        return None
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        command = [*become, apt, *arguments]
        if subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).returncode:
            print(f"{' '.join(command)} failed", flush=True)
    return find_chromium()
