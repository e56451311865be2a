"""What every node that scores pictures does: pictures in, rows out, a table for the page and /history."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from torch import Tensor

from ...experiments.summary import summarise
from ...experiments.summary_table import to_markdown
from ...metrics.rows import Row, Rows, json_safe
from ..types import Metrics
from .managed import Managed, kept
from .network_folders import register

OFF = "off"
FOLDER = "metrics"
"""Networks that score pictures lie below models/ here."""


@dataclass(frozen=True)
class Labels:
    """What is compared, for every row of one node."""

    method: str
    subject: str
    step: int | None

    def row(self, metric: str, value: float | None, model: str, note: str = "", picture: int | None = None) -> Row:
        """NaN becomes None: there is no figure."""
        known = None if value is None or math.isnan(value) else value
        return Row(metric, known, self.method, self.subject, step=self.step, picture=picture, model=model, note=note)

    def per_picture(self, metric: str, values: Iterable[float | None], model: str, missing: str) -> list[Row]:
        """A row a picture; `missing` is the note of those that have no figure."""
        rows = [self.row(metric, value, model, picture=number) for number, value in enumerate(values)]
        return [row if row.value is not None else self.row(metric, None, model, missing, row.picture) for row in rows]


def labels(method: str, subject: str, step: int) -> Labels:
    """Of a node's inputs; step 0 is none."""
    return Labels(method.strip(), subject.strip(), step or None)


def label_inputs() -> list[io.Input]:
    """Optional inputs that every scoring node has, at its end."""
    return [
        Metrics.Input("metrics", optional=True, tooltip="Rows so far, e.g. of another scoring node; they come first."),
        io.String.Input(
            "method",
            optional=True,
            default="",
            tooltip="What these pictures are called in tables, e.g. 'LoRA, rank 16'. Give each method its own name.",
        ),
        io.String.Input("subject", optional=True, default="", tooltip="Whom or what they show, for tables."),
        io.Int.Input(
            "step",
            optional=True,
            default=0,
            min=0,
            max=10_000_000,
            tooltip="Training step of the model that drew them, for the plot over steps. 0: not said.",
        ),
    ]


def score_outputs() -> list[io.Output]:
    """Outputs that every scoring node has, at its beginning."""
    return [
        Metrics.Output(
            display_name="metrics",
            tooltip="The rows so far and these, for Report (Likeness) or another scoring node.",
        ),
        io.String.Output(display_name="table", tooltip="This node's scores. Markdown; also shown on the node."),
    ]


def scored(before: Rows, rows: Sequence[Row], *more: Any) -> io.NodeOutput:
    """Outputs, and what the page and /history get: lists of JSON-safe values."""
    table = to_markdown(summarise(tuple(rows)))
    shown = {"text": [table], "metrics": json_safe(rows)}
    return io.NodeOutput((*(before or ()), *rows), table, *more, ui=shown)


def as_pictures(images: Tensor, name: str) -> Tensor:
    """IMAGE (N, H, W, 1 | 3 | 4) -> (N, 3, H, W) in [0, 1]; alpha is left out, grey becomes three channels.

    Raises:
        ValueError: no pictures, another shape, or NaN.
    """
    if images.ndim != 4 or images.shape[0] == 0 or images.shape[3] not in (1, 3, 4):
        raise ValueError(f"{name} must be pictures (N, H, W, 3) with at least one, got {tuple(images.shape)}")
    pictures = images[..., :3].movedim(-1, 1).float()
    if not pictures.isfinite().all():
        bad = int((~pictures.isfinite()).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"picture {bad} of {name} holds NaN or infinity; a VAE in 16 bits can do that, try --fp32-vae")
    return pictures.clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def in_batches(pictures: Tensor, function: Callable[[Tensor], Tensor], bar: Any, batch: int = 16) -> Tensor:
    """The function over parts of the pictures; looks for a cancel before each, and counts the bar on by pictures."""
    rows = []
    for part in pictures.split(batch):
        comfy.model_management.throw_exception_if_processing_interrupted()
        rows.append(function(part).cpu())
        bar.update(len(part))
    return torch.cat(rows)


def network(files: tuple[Path, ...], name: str, load: Callable[[], Any]) -> Managed:
    """A network that the host keeps, of ordinary tensors as its own are."""

    def make() -> Any:
        with torch.inference_mode(False):
            return load()

    return kept(files, name, make)


def network_file(names: Sequence[str], what: str) -> Path:
    """The first of these files in models/metrics.

    Raises:
        ValueError: none is there; says which file, and where it goes.
    """
    places = metric_folders()
    for name in names:
        for place in places:
            if (place / name).is_file():
                return place / name
    raise ValueError(f"{what} was not found: put {' or '.join(names)} into {places[0]}")


def network_files(*endings: str) -> list[str]:
    """Names of the files in models/metrics that end so."""
    found = {path.name for place in metric_folders() if place.is_dir() for path in place.iterdir() if path.is_file()}
    return sorted(name for name in found if name.lower().endswith(endings))


def metric_folders() -> list[Path]:
    """models/metrics, and what the host's extra_model_paths.yaml adds."""
    register(FOLDER)
    return [Path(place) for place in folder_paths.get_folder_paths(FOLDER)]
