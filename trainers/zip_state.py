"""The state of a ZipLoRA run in one file, from which it goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..lora.files import read_safetensors, write_safetensors

FILE = "ziplora_state.safetensors"
_FORMAT = "likeness.ziplora_state"
_M, _OPTIMIZER = "m.", "optimizer."


@dataclass(frozen=True)
class ZipState:
    """Steps made, lines of the log, coefficients by canonical layer (a row for each LoRA), the optimizer's state."""

    step: int
    records: tuple[Mapping[str, float], ...]
    coefficients: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def save_state(path: Path, state: ZipState, about: Mapping[str, Any]) -> None:
    """Write it, whole or not at all. about: what the run was told, which a resumed run is compared with."""
    tensors = {_M + name: m for name, m in state.coefficients.items()}
    tensors |= {_OPTIMIZER + name: tensor for name, tensor in state.optimizer.items()}
    text = json.dumps({"step": state.step, "records": state.records, "about": about})
    write_safetensors(path, tensors, {_FORMAT: text})


def load_state(path: Path, about: Mapping[str, Any]) -> ZipState:
    """Read what :func:`save_state` wrote.

    Raises:
        ValueError: not there, no such file, damaged, or of a run that was told something else (says what).
    """
    if not path.is_file():
        raise ValueError(f"There is no {path.name} in {path.parent} to resume from.")
    tensors, metadata = read_safetensors(path)
    try:
        told = json.loads(metadata[_FORMAT])
        step, records, before = int(told["step"]), told["records"], told["about"]
        if len(records) != step or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("it has not one record a step, or holds NaN")
        records = tuple({str(key): float(value) for key, value in record.items()} for record in records)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as why:
        raise ValueError(f"{path} cannot be resumed from: {type(why).__name__}: {str(why)[:300]}. Start anew.") from why
    if differing := [key for key, value in about.items() if before.get(key) != value]:
        key = differing[0]
        raise ValueError(
            f"Cannot resume: {key} is {about[key]!r}, the earlier run's is {before.get(key)!r}. Set it alike, or start "
            "anew."
        )
    parts = [
        {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
        for start in (_M, _OPTIMIZER)
    ]
    return ZipState(step, records, parts[0], parts[1])
