"""Folders of detectors and segmenters below models/: which there are, and, when the user asks for it, a new one."""

from __future__ import annotations

import os
import re
from pathlib import Path

import folder_paths

GROUNDING, SAMS, SAM2 = "grounding-dino", "sams", "sam2"
SINGLE = (".pth", ".pt", ".safetensors")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_WANTED = ("*.json", "*.txt", "*.safetensors")  # a pickle is never fetched


def register(kind: str) -> None:
    """Make models/<kind> known to the host, where neither it nor another pack has done so."""
    if kind not in folder_paths.folder_names_and_paths:
        folder_paths.add_model_folder_path(kind, os.path.join(folder_paths.models_dir, kind))


def network_folders(*kinds: str) -> dict[str, Path]:
    """``kind/name`` (or ``kind/owner/name``) -> path of what lies below models/<kind>: folders with a config.json.

    Single files of the original code are listed too, so that choosing one says what is needed instead.
    """
    found: dict[str, Path] = {}
    for kind in kinds:
        register(kind)
        for base in map(Path, folder_paths.get_folder_paths(kind)):
            for path in _below(base):
                found.setdefault(f"{kind}/{path.relative_to(base).as_posix()}", path)
    return dict(sorted(found.items()))


def chosen_folder(name: str, *kinds: str) -> Path:
    """The path of a name that :func:`network_folders` lists.

    Raises:
        ValueError: it is not there (any more).
    """
    there = network_folders(*kinds)
    if name not in there:
        places = " or ".join(str(Path(folder_paths.get_folder_paths(kind)[0])) for kind in kinds)
        raise ValueError(
            f"there is no model {name!r} in {places}. "
            + (f"There are: {', '.join(list(there)[:20])}. " if there else "")
            + "Put the model's whole folder there (config.json, model.safetensors, preprocessor_config.json …)."
        )
    return there[name]


def hub_folder(hub_id: str, allow_download: bool, kind: str, example: str) -> Path:
    """models/<kind>/<owner>--<name>: what was downloaded before, else, if it is allowed, what is downloaded now.

    Raises:
        ValueError: no hub id; it is not there and downloads are off; it cannot be had.
    """
    name = hub_id.strip()
    if not _HUB_ID.fullmatch(name) or ".." in name:
        raise ValueError(f"{hub_id[:100]!r} is no id of a model on huggingface.co; expected one like {example}")
    register(kind)
    folder = Path(folder_paths.get_folder_paths(kind)[0], name.replace("/", "--"))
    done = folder / "config.json"
    if done.is_file() and any(folder.glob("*.safetensors")):
        return folder
    if not allow_download:
        raise ValueError(
            f"{name} is not in {folder}, and downloads are off. Switch allow_download on, or copy the files of "
            f"https://huggingface.co/{name} (.json, .txt, .safetensors) into that folder."
        )
    try:
        from huggingface_hub import snapshot_download

        snapshot_download(name, local_dir=str(folder), allow_patterns=list(_WANTED))
    except Exception as error:  # the hub's client has its own, the network others
        raise ValueError(
            f"{name} could not be downloaded to {folder}: {type(error).__name__}: {error!s:.300}"
        ) from error
    return folder


def folder_stamp(folder: Path) -> str:
    """Changes whenever a file in the folder does."""
    try:
        about = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.iterdir())]
    except OSError:
        return ""
    return str(about)


def _below(base: Path) -> list[Path]:
    found: list[Path] = []
    for path in _entries(base):
        if path.is_file():
            found += [path] if path.suffix.lower() in SINGLE else []
        elif (path / "config.json").is_file():
            found.append(path)
        else:
            found += [inner for inner in _entries(path) if (inner / "config.json").is_file()]
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
