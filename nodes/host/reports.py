"""A report's files in the output folder, and what the page and /history get of them."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...experiments.summary import Summary
from ...experiments.summary_plots import plots
from ...experiments.summary_table import to_csv, to_json, to_markdown
from ...lora.atomic import write_whole
from ...metrics.rows import Row, json_safe
from .folders import RUNS, runs_folder, safe_name


@dataclass(frozen=True)
class Report:
    """What a report gives.

    Attributes:
        folder: where its files are.
        table: markdown.
        csv, json: the same figures for programs.
        pictures: (1 to 3, H, W, 3) in [0, 1].
        ui: for the page and /history: lists of JSON-safe values.
    """

    folder: Path
    table: str
    csv: str
    json: str
    pictures: Tensor
    ui: dict[str, list[Any]]


def write_report(name: str, summary: Summary, rows: Sequence[Row], prompt: str = "", subject: str = "") -> Report:
    """Write report.md, .csv, .json, rows.json and the plots to ``output/likeness/<name>/``, each whole.

    A report of that name is replaced, plots that it had and this one has not included.

    Args:
        prompt, subject: metrics of the Pareto plot, or empty.

    Raises:
        ValueError: a name that can be no folder's, or a metric that was not measured.
    """
    drawn = plots(summary, prompt, subject)
    table, figures = to_markdown(summary, name.strip()), to_json(summary)
    written = json.dumps({**figures, "rows": json_safe(rows)}, indent=1, allow_nan=False)
    csv = to_csv(summary)
    folder = named_folder(name)
    texts = {"report.md": table, "report.csv": csv, "report.json": written}
    files = {file: text.encode() for file, text in texts.items()} | {
        f"{kind}.png": data for kind, data in drawn.items()
    }
    for file, data in files.items():
        write_whole(folder / file, [data])
    for kind in ("pareto", "steps"):
        if kind not in drawn:
            (folder / f"{kind}.png").unlink(missing_ok=True)
    images = [{"filename": f"{kind}.png", "subfolder": f"{RUNS}/{folder.name}", "type": "output"} for kind in drawn]
    shown: dict[str, list[Any]] = {"images": images, "text": [table], "metrics": figures["figures"]}
    shown |= {"tests": figures["tests"], "rows": json_safe(rows)}
    return Report(folder, table, csv, written, as_images(drawn), shown)


def named_folder(name: str) -> Path:
    """``output/likeness/<name>``, which need not be there yet.

    Raises:
        ValueError: a name without letter or digit, or of a link, which would be written through.
    """
    if not safe_name(name):
        raise ValueError(f"The name {name!r} cannot be a folder's name; try 'my_subject'.")
    folder = runs_folder() / safe_name(name)
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, and would be written through; put a folder in its place.")
    return folder


def as_images(files: Mapping[str, bytes]) -> Tensor:
    """PNG files of one size -> (B, H, W, 3) float32 in [0, 1]."""
    opened = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float32) for data in files.values()]
    return torch.from_numpy(np.stack(opened)) / 255
