"""The tiny base models' checkpoints and the quickstart's reference pictures, put together where a server reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .paths import HOST_BASES, ROOT

CHECKPOINT = "tiny-unet.safetensors"
PARTS = {  # each checkpoint's shipped weights, tinyworld.assemble's
    "tiny-unet": ("tiny-unet.safetensors", "tiny-vae.safetensors", "tiny-clip.safetensors"),
    "tiny-mmdit": ("tiny-mmdit.safetensors", "tiny-mmdit-vae.safetensors", "tiny-clip.safetensors"),
}
SHARED = HOST_BASES / "models" / "checkpoints"  # assembled once, linked into each server's base
QUICKSTART_FOLDER = "likeness_quickstart"
PICTURES = {".png", ".jpg", ".jpeg", ".webp"}


def is_shipped(model: str) -> bool:
    """Whether this checkout holds the model's weights."""
    return all((ROOT / "tinyworld" / "weights" / part).is_file() for part in PARTS[model])


def tiny_checkpoint(folder: Path = SHARED, model: str = "tiny-unet") -> Path:
    """The assembled checkpoint in `folder`; assembles it when it is missing or older than the shipped weights.

    LIKENESS_CHECKPOINT names a file to use instead of tiny-unet's.

    Raises:
        ValueError: it is not there and cannot be assembled.
    """
    named = os.environ.get("LIKENESS_CHECKPOINT")
    if named and model == "tiny-unet":
        return Path(named).resolve()
    target = folder / f"{model}.safetensors"
    parts = [ROOT / "tinyworld" / "weights" / part for part in PARTS[model]]
    if target.is_file() and all(p.is_file() and p.stat().st_mtime <= target.stat().st_mtime for p in parts):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    _tinyworld("assemble", str(folder), "--model", model)
    if not target.is_file():
        raise ValueError(f"python -m tinyworld.assemble {folder} ended well but left no {target.name} there")
    return target


def link_checkpoint(base: Path, model: str = "tiny-unet") -> Path:
    """Put the checkpoint into a base's models/checkpoints: a link where the system has them, else the file itself."""
    return _link(tiny_checkpoint(model=model), base / "models" / "checkpoints" / f"{model}.safetensors")


def link_hypernetwork(base: Path) -> Path:
    """Put tiny-unet's hypernetwork for LoRA.rar into a base's models/hypernetworks/likeness."""
    place = base / "models" / "hypernetworks" / "likeness" / "tiny-unet.safetensors"
    place.parent.mkdir(parents=True, exist_ok=True)
    return _link(ROOT / "tinyworld" / "weights" / "tiny-hypernetwork.safetensors", place)


def _link(source: Path, place: Path) -> Path:
    if place.is_symlink() and place.resolve() == source.resolve():
        return place
    if place.is_symlink() or place.exists():
        place.unlink()
    try:
        place.symlink_to(source)
    except OSError:
        os.link(source, place)
    return place


def reference_pictures(base: Path, subject: str) -> list[Path]:
    """The quickstart's reference pictures in a base's input folder, extracted from the shipped held-out pictures."""
    folder = base / "input" / QUICKSTART_FOLDER
    if not _pictures(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _tinyworld("truth", "--references", subject, str(folder))
    found = _pictures(folder)
    if not found:
        raise ValueError(f"python -m tinyworld.truth --references {subject} left no picture in {folder}")
    return found


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES) if folder.is_dir() else []


def _tinyworld(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", f"tinyworld.{module}", *arguments]
    result = subprocess.run(command, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode:
        tail = "\n".join((result.stdout + result.stderr).splitlines()[-15:])
        raise ValueError(f"python -m tinyworld.{module} {' '.join(arguments)} failed:\n{tail}")
