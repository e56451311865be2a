"""The LoRAs that there must be before any are merged: graphs that teach them, and what they are taught on."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...experiments.sweep import Sweep, from_mapping
from ..split import library_subjects, load_split
from ..truth import TRIGGER, write_references, write_style
from .graphs import node, start
from .merges import LIBRARY, NETWORK, STYLE_BATCH, STYLE_TRIGGER, dataset, lora_file, train, trained
from .merges import SUBJECTS as COMPARED

_SPLIT = load_split()
SUBJECTS = (*(name for name in _SPLIT.held_out_subjects if name not in COMPARED), *library_subjects(_SPLIT))
"""49 that neither the model nor the comparison saw."""
STYLES = _SPLIT.pretrain_styles
"""Six that the model knows by other words."""
MEASURED = 1
"""The last subject and the last style are not learnt from."""


def write_pictures(base: Path, kind: str, folder: str, labels: Sequence[str]) -> None:
    """What LoRAs are taught on, below input; and beside the LoRAs, where Train LoRA.rar looks for it."""
    for label in labels:
        for place in (base / "input", base / "models" / "loras"):
            target = place / lora_file(folder, kind, label)
            if kind == "subject":
                write_references(label, target)
            else:
                write_style(label, target, trigger=STYLE_TRIGGER)


def teaching(info: Mapping[str, Any], args: Namespace, kind: str, folder: str, labels: Sequence[str]) -> Sweep:
    """A LoRA of each subject, or of each style."""
    graph = start(info)
    of_subject = kind == "subject"
    graph["data"] = dataset(info, TRIGGER if of_subject else STYLE_TRIGGER)
    train(info, args, graph, *((args.steps, 1) if of_subject else (args.style_steps, STYLE_BATCH)))
    graph["save"] = node(info, "LikenessSaveLoRA", lora=trained(info), filename="")
    values = [
        {"label": label, "set": {"data.folder": file, "save.filename": file}}
        for label in labels
        for file in [lora_file(folder, kind, label)]
    ]
    return from_mapping({"name": kind, "graph": graph, "axes": {kind: {"values": values}}})


def hypernetwork(info: Mapping[str, Any], args: Namespace) -> Sweep:
    """One run: LikenessTrainLoRARar on the library."""
    graph = start(info)
    graph["rar"] = node(
        info,
        "LikenessTrainLoRARar",
        **{"model": ["model", 0], "clip": ["model", 1], "vae": ["model", 2]},
        **{"subjects": f"{LIBRARY}/subjects/*", "styles": f"{LIBRARY}/styles/*"},
        **{"steps": args.rar_steps, "held_out": MEASURED, "filename": NETWORK, "width": 64, "height": 64},
    )
    return from_mapping(
        {"name": "hypernetwork", "graph": graph, "axes": {"seed": {"inputs": "rar.seed", "values": [1]}}}
    )
