"""NIQE, BRISQUE, the aesthetic score and MANIQA, picture by picture."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
from torch import Tensor

from ...metrics.aesthetic import FILE as AESTHETIC_FILE
from ...metrics.aesthetic import aesthetic_scores, load_aesthetic
from ...metrics.brisque import FILES as BRISQUE_FILES
from ...metrics.brisque import brisque, load_machine
from ...metrics.maniqa import maniqa
from ...metrics.maniqa_files import is_maniqa, load_maniqa
from ...metrics.niqe import niqe
from ...metrics.rows import Row
from .scores import OFF, Labels, in_batches, network, network_file, network_files

_FLAT = "no texture to measure"
_MEMORY = 1024**3  # four crops of 224 through ViT-B/8


def quality_rows(
    pictures: Tensor,
    with_niqe: bool,
    with_brisque: bool,
    with_aesthetic: bool,
    clip: Any | None,
    labels: Labels,
    maniqa_file: str = OFF,
) -> list[Row]:
    """Rows of (N, 3, H, W), one a picture and metric. `maniqa_file`: a name of :func:`maniqa_files`, or off.

    Raises:
        ValueError: nothing is asked for, a file or `clip` is missing, or the pictures are too small.
    """
    with_maniqa = maniqa_file != OFF
    if not (with_niqe or with_brisque or with_aesthetic or with_maniqa):
        raise ValueError("nothing is to be scored: switch on niqe, brisque or aesthetic, or choose a file for maniqa")
    if with_aesthetic and clip is None:
        raise ValueError("the aesthetic score needs CLIP ViT-L/14: wire it to clip, or switch aesthetic off")
    machine = load_machine(network_file(BRISQUE_FILES, "BRISQUE's support vector machine")) if with_brisque else None
    head = None
    if with_aesthetic:
        files = (AESTHETIC_FILE, AESTHETIC_FILE.replace(".pth", ".safetensors"))
        path = network_file(files, "LAION's aesthetic predictor")
        head = network((path,), "aesthetic", lambda: load_aesthetic(path))
    judge = None
    if with_maniqa:
        file = network_file([maniqa_file], "MANIQA's file")
        judge = network((file,), "MANIQA", lambda: load_maniqa(file))
    bar = comfy.utils.ProgressBar(len(pictures) * (with_niqe + with_brisque + with_aesthetic + with_maniqa))
    rows: list[Row] = []
    if with_niqe:
        values = in_batches(pictures, niqe, bar, 1).tolist()
        rows += labels.per_picture("niqe", values, "NIQE, authors' release, grey, 96-pixel blocks", _FLAT)
    if machine is not None:
        values = in_batches(pictures, lambda part: brisque(part, machine), bar, 1).tolist()
        rows += labels.per_picture("brisque", values, "BRISQUE, LIVE", _FLAT)
    if head is not None and clip is not None:
        found = in_batches(pictures, clip.features, bar)
        values = aesthetic_scores(found, head.loaded()).tolist()
        rows += labels.per_picture("aesthetic", values, f"LAION improved aesthetic, {clip.description}", "")
    if judge is not None:
        looked = comfy.model_management.throw_exception_if_processing_interrupted
        values = in_batches(pictures, lambda part: maniqa(part, judge.loaded(_MEMORY), looked), bar, 1).tolist()
        rows += labels.per_picture("maniqa", values, judge.loaded(_MEMORY).description, "")
    return rows


def maniqa_files() -> list[str]:
    """Files in models/metrics that may be MANIQA's."""
    return [name for name in network_files(".pt", ".pth", ".safetensors") if is_maniqa(name)]
