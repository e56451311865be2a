"""The one door to ComfyUI: every question that a node asks of the host is asked here."""

from __future__ import annotations

from .denoiser import HostDenoiser
from .folders import folder_fingerprint, input_base, input_folder
from .report import describe_options
from .session import Trained, train_lora
from .weights import autograd_weights, ordinary_tensors

__all__ = [
    "HostDenoiser",
    "Trained",
    "autograd_weights",
    "describe_options",
    "folder_fingerprint",
    "input_base",
    "input_folder",
    "ordinary_tensors",
    "train_lora",
]
