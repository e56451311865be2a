"""Saving and loading LoRA files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io, ui

from ..lora.keys import SCHEMES
from ..lora.load import DTYPES, load_lora, save_lora
from . import host
from .types import LoraModel


class LikenessSaveLoRA(io.ComfyNode):
    """LORA_MODEL -> a file below models/loras that every LoRA loader reads."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessSaveLoRA",
            display_name="Save LoRA (Likeness)",
            category="Likeness/lora",
            description="Saves a LoRA below models/loras, with full metadata, in the naming that its readers expect.",
            is_output_node=True,
            inputs=[
                LoraModel.Input("lora", tooltip="The LoRA, e.g. from Train LoRA or from Load LoRA."),
                io.String.Input(
                    "filename",
                    default="likeness/my_subject",
                    tooltip="Below models/loras, without ending. A file of that name is replaced.",
                ),
                io.Combo.Input(
                    "naming",
                    options=list(SCHEMES),
                    tooltip="kohya: what most programs and sites read. diffusers: for the diffusers library. "
                    "comfy: the model's own layer names. ComfyUI's LoRA loader reads all three.",
                ),
                io.Combo.Input("dtype", options=list(DTYPES), tooltip="fp32 is exact and twice as large."),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file was written.")],
        )

    @classmethod
    def execute(cls, lora: dict[str, Any], filename: str, naming: str, dtype: str) -> io.NodeOutput:
        path = host.model_file("loras", filename, "likeness/my_subject")
        save_lora(path, lora, naming, dtype)
        return io.NodeOutput(str(path), ui=ui.PreviewText(str(path)))


class LikenessLoadLoRA(io.ComfyNode):
    """A LoRA file in any naming -> LORA_MODEL and what the file says of itself."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LikenessLoadLoRA",
            display_name="Load LoRA (Likeness)",
            category="Likeness/lora",
            description="Loads a LoRA file of any naming scheme, to look at, convert or merge. Says which layer does "
            "not fit, instead of leaving it out.",
            inputs=[
                io.Combo.Input(
                    "lora_name", options=folder_paths.get_filename_list("loras"), tooltip="A file in models/loras."
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="The model it is meant for: every layer is checked against it."
                ),
                io.Combo.Input(
                    "unknown_keys",
                    options=["refuse", "keep"],
                    default="refuse",
                    optional=True,
                    tooltip="refuse: a file with keys that name no layer is an error. keep: they come along as they "
                    "are, so that Inspect LoRA lists them.",
                ),
            ],
            outputs=[
                LoraModel.Output(display_name="lora", tooltip="For Save LoRA, or any node that takes a LoRA."),
                io.String.Output(display_name="metadata", tooltip="What the file says of itself, as JSON."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name: str, model: Any = None, unknown_keys: str = "refuse") -> str:
        found = Path(folder_paths.get_full_path_or_raise("loras", lora_name)).stat()
        return f"{found.st_mtime_ns} {found.st_size}"

    @classmethod
    def execute(cls, lora_name: str, model: Any = None, unknown_keys: str = "refuse") -> io.NodeOutput:
        layers = host.model_layers(model) if model is not None else None
        path = folder_paths.get_full_path_or_raise("loras", lora_name)
        lora = load_lora(path, layers, keep_unknown=unknown_keys == "keep")
        metadata = json.dumps(lora.metadata, indent=2, ensure_ascii=False, sort_keys=True)
        return io.NodeOutput(lora, metadata, ui=ui.PreviewText(metadata))
