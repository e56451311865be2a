"""Where a pretraining run stands: one file, replaced whole, so that a killed build goes on from its last save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def save_progress(path: Path, step: int, parts: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, temporary)
    temporary.replace(path.with_suffix(".pt"))


def load_progress(path: Path, parts: dict[str, Any]) -> int:
    """Restore `parts` from the last save; -> the step to go on from (0 where there is none)."""
    saved = path.with_suffix(".pt")
    if not saved.exists():
        return 0
    state = torch.load(saved, weights_only=True, map_location="cpu")
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
