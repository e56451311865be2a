"""ruff on everything, mypy --strict on the rooms."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from .paths import ROOT, venv_python

ROOMS = ("lora", "trainers", "merging", "segmentation", "metrics", "experiments", "tinyworld")


def ruff() -> int:
    scripts = [name for name in ("demo", "test") if (ROOT / name).exists()]
    return subprocess.run([str(venv_python()), "-m", "ruff", "check", ".", *scripts], cwd=ROOT).returncode


def mypy() -> int:
    """mypy on likeness.<room>. The folder's own name may hold dashes, which no package name may, so it is seen through
    a link named `likeness` in a folder made for the purpose."""
    rooms = [room for room in ROOMS if (ROOT / room / "__init__.py").exists()]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "likeness").symlink_to(ROOT, target_is_directory=True)
        command = [str(venv_python()), "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
        command += ["--cache-dir", str(ROOT / ".mypy_cache"), "--no-error-summary"]
        command += [part for room in rooms for part in ("-p", f"likeness.{room}")]
        return subprocess.run(command, cwd=folder, env={**os.environ, "MYPYPATH": folder}).returncode


def lint() -> int:
    """0 when both are content."""
    return max(ruff(), mypy())
