"""Where pictures are read from and runs are written to."""

from __future__ import annotations

import hashlib
import os
import re
import time
from pathlib import Path, PurePosixPath, PureWindowsPath

import folder_paths

RUNS = "likeness"
_LONGEST_NAME = 80  # characters of a run's folder; file systems take 255 bytes, and its files are named after it
_LONGEST_PART = 200  # bytes of a file's path; file systems take 255, and a file is written under a longer name first
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")  # devices on Windows, in any folder


def input_folder(name: str | None) -> Path:
    """The folder of this name below the host's input folder.

    The name is a stranger's text, so it may not climb out. A link inside the input folder is the machine's owner's, who
    keeps the photos elsewhere: it is followed, as by the host.

    Raises:
        ValueError: empty, outside of the input folder, or not there (names the folders that are).
    """
    base = Path(os.path.abspath(folder_paths.get_input_directory()))
    if not (name or "").strip():
        raise ValueError(f"No pictures are given: write the name of a folder below {base}, or wire images.")
    folder = Path(os.path.normpath(base / str(name).strip()))  # ".." leads to where it is written, not past a link
    _resolved(folder)  # tells what can be no path
    if not any(folder.is_relative_to(place) for place in (base, base.resolve())):
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
        paths = sorted(input_folder(name).iterdir())
    except (ValueError, OSError):
        return ""
    digest = hashlib.sha256()
    for path in paths:
        try:
            about = path.stat()
        except OSError:  # a link to nowhere, or gone since it was listed
            continue
        digest.update(os.fsencode(f"{path.name}\0{about.st_size}\0{about.st_mtime_ns}\n"))  # names need not be UTF-8
    return digest.hexdigest()


def model_file(kind: str, filename: str, example: str) -> Path:
    """The safetensors file of that name below models/<kind>, to be written.

    Raises:
        ValueError: it leads out of there, or is no name.
    """
    name = filename.strip().replace("\\", "/").removesuffix(".safetensors")
    parts = PurePosixPath(name).parts
    outside = not parts or ".." in parts or name.startswith("/") or PureWindowsPath(name).drive or name.endswith("/")
    odd = any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in name)
    if outside or odd or len(name) > 500 or any(len(part.encode()) > _LONGEST_PART for part in parts):
        raise ValueError(
            f"the filename {filename[:100]!r} leads out of models/{kind}, or is no name there; expected one like "
            f"{example}"
        )
    return Path(folder_paths.get_folder_paths(kind)[0], *parts[:-1], f"{parts[-1]}.safetensors")


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

    A resumed run is written to, and a graph may come from anyone; so it must be below the host's output folder, as all
    that the host writes, links followed.

    Raises:
        ValueError: there is no such run, it is outside of the output folder, or it has no checkpoint.
    """
    text = resume_from.strip()
    output = Path(folder_paths.get_output_directory())
    bases = [runs_folder().resolve(), output.resolve()]
    found = None
    for candidate in (runs_folder() / text, output / text):
        path = _resolved(candidate)
        if path.is_dir():
            found = path
            break
    if found is not None and not any(found.is_relative_to(base) and found != base for base in bases):
        raise ValueError(
            f"The run {text!r} is outside of ComfyUI's output folder {output}; copy its folder to {runs_folder()}."
        )
    if found is None:
        there = sorted(path.name for path in runs_folder().iterdir()) if runs_folder().is_dir() else []
        raise ValueError(
            f"There is no run {text!r} in {runs_folder()} to resume from. "
            + (f"There are: {', '.join(there[-20:])}." if there else "No run has been made yet.")
        )
    folder = found.parent.parent if found.parent.name == "checkpoints" else found
    if folder in bases or not any(folder.is_relative_to(base) for base in bases):
        raise ValueError(f"{found} is no run, nor a checkpoint of one; give the name of a folder in {runs_folder()}.")
    for name in ("checkpoints", "samples"):
        if (folder / name).is_symlink():
            raise ValueError(f"{folder / name} is a link, and would be written through; put a folder in its place.")
    if folder != found:
        return folder, found
    if not (found / "checkpoints").is_dir() or not any((found / "checkpoints").iterdir()):
        raise ValueError(f"The run {found} has no checkpoint to resume from; it ended before its first one.")
    return found, found


def safe_name(text: str) -> str:
    """Letters, digits, dot, dash and underscore, which every file system takes; what is between becomes underscores.

    No longer than a folder's name can be, and no name of a device.
    """
    name = re.sub(r"[^\w.\-]+", "_", text).strip("._-")[:_LONGEST_NAME]
    while len(name.encode()) > 2 * _LONGEST_NAME:
        name = name[:-1]
    name = name.strip("._-")
    return f"{name}_" if _RESERVED.fullmatch(name) else name


def _resolved(path: Path) -> Path:
    """The path with links followed. Raises ValueError for what can be no path."""
    try:
        real = path.resolve()
        real.is_dir()  # a name that is too long is told here
    except (OSError, ValueError, RuntimeError) as why:  # RuntimeError: links in a circle, in older Pythons
        raise ValueError(f"{str(path)[:300]!r} is no path that can be used ({str(why)[:100]}).") from why
    return real
