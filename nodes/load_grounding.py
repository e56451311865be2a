"""LikenessLoadGrounding: what finds objects by phrases."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..segmentation.grounding_dino import EXAMPLE
from .host import finders
from .host.network_folders import GROUNDING, chosen_folder, folder_stamp, hub_folder, network_folders
from .types import Grounding

BUILT_IN = "subject finder (built in)"


class LikenessLoadGrounding(io.ComfyNode):
    """A folder of Grounding DINO, or the built-in subject finder -> a detector."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessLoadGrounding",
            display_name="Load Grounding (Likeness)",
            category="Likeness/segmentation",
            description="Loads what finds objects in pictures by phrases: a Grounding DINO from a folder in "
            "models/grounding-dino, or the small built-in subject finder, which needs no download but knows no words.",
            inputs=[
                io.Combo.Input(
                    "detector",
                    options=[BUILT_IN, *network_folders(GROUNDING)],
                    default=BUILT_IN,
                    tooltip="Folders below models/grounding-dino, as on huggingface.co (config.json, "
                    "model.safetensors, preprocessor_config.json, the tokenizer). The built-in one finds the subject "
                    "of a simple picture, whatever the phrase.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(finders.PRECISIONS),
                    default=finders.AUTO,
                    tooltip="Of Grounding DINO's weights. auto: fp32, for 16 bits move boxes by pixels.",
                ),
                io.String.Input(
                    "hub_id",
                    default="",
                    optional=True,
                    tooltip=f"Instead of a folder: a model of huggingface.co, e.g. {EXAMPLE}. It lies in "
                    "models/grounding-dino/owner--name; it is fetched only if allow_download is on.",
                ),
                io.Boolean.Input(
                    "allow_download",
                    default=False,
                    optional=True,
                    tooltip="Off: nothing is downloaded, ever. On: hub_id is fetched once (some 700 MB).",
                ),
            ],
            outputs=[Grounding.Output(display_name="grounding", tooltip="For Grounded Segment (Likeness).")],
        )

    @classmethod
    def fingerprint_inputs(cls, detector: str = BUILT_IN, **_: Any) -> str:
        """A folder that has changed is read again."""
        folder = network_folders(GROUNDING).get(detector)
        return "" if folder is None else folder_stamp(folder)

    @classmethod
    def execute(cls, detector: str, precision: str, hub_id: str = "", allow_download: bool = False) -> io.NodeOutput:
        """Find the folder, read it."""
        if hub_id.strip():
            return io.NodeOutput(finders.grounding(hub_folder(hub_id, allow_download, GROUNDING, EXAMPLE), precision))
        if detector == BUILT_IN:
            return io.NodeOutput(finders.subject_finder())
        return io.NodeOutput(finders.grounding(chosen_folder(detector, GROUNDING), precision))
