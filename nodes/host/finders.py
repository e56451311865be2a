"""Detectors and segmenters whose networks the host keeps: loaded when they are used, offloaded and freed by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import torch

from ...segmentation.builtin import SubjectFinder
from ...segmentation.found import Detector, Segmenter
from ...segmentation.grounding_dino import GroundingDino, grounding_dino_processor, load_grounding_dino
from ...segmentation.model_folder import DTYPES, files_of
from ...segmentation.sam import Sam, load_sam, sam_processor
from ...segmentation.subject import WEIGHTS, load_subject_segmenter
from .managed import kept

AUTO = "auto"
PRECISIONS = (AUTO, *DTYPES)
_MEGABYTE = 1024**2


def subject_finder() -> SubjectFinder:
    """The built-in one."""
    if not WEIGHTS.is_file():
        load_subject_segmenter()  # says what is wrong
    managed = kept((WEIGHTS,), "subject finder", load_subject_segmenter)
    return SubjectFinder(lambda: managed.loaded(512 * _MEGABYTE))


def grounding(folder: Path, precision: str) -> Detector:
    """Grounding DINO of a folder. Its boxes lose pixels in 16 bits and it is small, so "auto" is fp32."""
    dtype = "fp32" if precision == AUTO else precision
    processor = grounding_dino_processor(folder)
    loaded = _managed(folder, dtype, load_grounding_dino, 2048)
    return GroundingDino(loaded, processor, f"Grounding DINO, {folder.name}, {dtype}")


def segmenter(folder: Path, precision: str) -> Segmenter:
    """SAM or SAM 2 of a folder; "auto" is fp16 where the host would use it, else fp32."""
    device = comfy.model_management.get_torch_device()
    half = comfy.model_management.should_use_fp16(device, prioritize_performance=False)
    dtype = ("fp16" if half else "fp32") if precision == AUTO else precision
    processor = sam_processor(folder)
    return Sam(_managed(folder, dtype, load_sam, 3072), processor, f"SAM, {folder.name}, {dtype}")


def _managed(folder: Path, dtype: str, load: Callable[[Path, str], Any], megabytes: int) -> Callable[[], Any]:
    """How to have the network on the device. ``megabytes``: about what a use takes besides the weights."""

    def make() -> Any:
        with torch.inference_mode(False):  # as the host's own models: ordinary tensors
            return load(folder, dtype)

    managed = kept(files_of(folder), (load.__name__, dtype), make)
    return lambda: managed.loaded(megabytes * _MEGABYTE)
