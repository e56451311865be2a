"""The one door to ComfyUI: every question that a node asks of the host is asked here."""

from __future__ import annotations

from .applied import applied
from .denoiser import HostDenoiser
from .folders import folder_fingerprint, input_folder, model_file
from .layers import model_layers
from .rates import find_learning_rate
from .report import describe_options
from .session import Trained, train_lora
from .weights import autograd_weights, ordinary_tensors
from .zipped import learn_zip

__all__ = [
    "HostDenoiser",
    "Trained",
    "applied",
    "autograd_weights",
    "describe_options",
    "find_learning_rate",
    "folder_fingerprint",
    "input_folder",
    "learn_zip",
    "model_file",
    "model_layers",
    "ordinary_tensors",
    "train_lora",
]
