"""Where things lie. Standard library only: `./demo` and `./test` read this before any environment exists."""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
HOST_BASES = ROOT / ".host"  # the host and every server's own base folder; ignored by git
TRANSFORMERS4 = HOST_BASES / "transformers4"  # an older transformers, for tests
DEMO_OUTPUT = ROOT / "demo-output"


def venv_python() -> Path:
    """The interpreter of the environment that `./demo` and `./test` make."""
    return VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def users_host() -> Path | None:
    """The ComfyUI that the user named by COMFYUI_PATH, or None.

    Raises:
        ValueError: COMFYUI_PATH is set but there is no ComfyUI in it.
    """
    named = os.environ.get("COMFYUI_PATH")
    if not named:
        return None
    host = Path(named).expanduser().resolve()
    if not (host / "main.py").is_file() or not (host / "comfy").is_dir():
        raise ValueError(f"COMFYUI_PATH is {named}, but there is no ComfyUI in it: expected main.py and a comfy folder")
    return host


def host_path() -> Path:
    """The ComfyUI to run: the user's when COMFYUI_PATH names one, else the one brought into .host/."""
    return users_host() or HOST_BASES / "ComfyUI"
