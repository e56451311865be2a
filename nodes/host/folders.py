"""Where pictures are read from and runs are written to."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path

import folder_paths

RUNS = "likeness"


def input_folder(name: str | None) -> Path:
    """The folder of this name below the host's input folder.

    Raises:
        ValueError: empty, outside of the input folder, or not there (names the folders that are).
    """
    base = Path(folder_paths.get_input_directory()).resolve()
    if not (name or "").strip():
        raise ValueError(f"No pictures are given: write the name of a folder below {base}, or wire images.")
    folder = (base / str(name).strip()).resolve()
    if not folder.is_relative_to(base):
        raise ValueError(f"The folder {name!r} is outside of ComfyUI's input folder {base}; put the pictures below it.")
    if not folder.is_dir():
        there = sorted(path.name for path in base.iterdir() if path.is_dir()) if base.is_dir() else []
        raise ValueError(
            f"There is no folder {name!r} below {base}. " + (f"There are: {', '.join(there[:20])}." if there else "")
        )
    return folder


def folder_fingerprint(name: str | None) -> str:
    """Changes whenever a file in the folder does; empty when there is no such folder."""
    try:
        folder = input_folder(name)
    except ValueError:
        return ""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            about = path.stat()
            digest.update(f"{path.relative_to(folder)}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def runs_folder() -> Path:
    """Where all runs are."""
    return Path(folder_paths.get_output_directory()) / RUNS


def new_run_folder(run_name: str, trigger: str) -> Path:
    """Make the folder of a new run. A name that is taken gets a number: no run overwrites another.

    Raises:
        ValueError: a name without any letter or digit.
    """
    name = safe_name(run_name) or f"{safe_name(trigger) or 'run'}_{time.strftime('%Y%m%d-%H%M%S')}"
    if run_name.strip() and not safe_name(run_name):
        raise ValueError(f"The run name {run_name!r} cannot be a folder's name; try 'my_subject', or leave it empty.")
    number = 1
    while True:
        folder = runs_folder() / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def resumed_run(resume_from: str) -> tuple[Path, Path]:
    """(run folder, what to resume from) of a run's name, or of the path of its folder or of one of its checkpoints.

    Raises:
        ValueError: there is no such run, or it has no checkpoint.
    """
    text = resume_from.strip()
    candidates = [runs_folder() / text, Path(folder_paths.get_output_directory()) / text, Path(text).expanduser()]
    found = next((path.resolve() for path in candidates if path.is_dir()), None)
    if found is None:
        there = sorted(path.name for path in runs_folder().iterdir()) if runs_folder().is_dir() else []
        raise ValueError(
            f"There is no run {text!r} in {runs_folder()} to resume from. "
            + (f"There are: {', '.join(there[-20:])}." if there else "No run has been made yet.")
        )
    if found.parent.name == "checkpoints":
        return found.parent.parent, found
    if not (found / "checkpoints").is_dir() or not any((found / "checkpoints").iterdir()):
        raise ValueError(f"The run {found} has no checkpoint to resume from; it ended before its first one.")
    return found, found


def safe_name(text: str) -> str:
    """Letters, digits, dot, dash and underscore, which every file system takes; what is between becomes underscores."""
    return re.sub(r"[^\w.\-]+", "_", text).strip("._-")
