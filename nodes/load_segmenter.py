"""LikenessLoadSegmenter: what makes masks of boxes."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host import finders
from .host.network_folders import SAM2, SAMS, chosen_folder, folder_stamp, hub_folder, network_folders
from .load_grounding import BUILT_IN
from .types import Segmenter

EXAMPLE = "facebook/sam2.1-hiera-small"


class LikenessLoadSegmenter(io.ComfyNode):
    """A folder of SAM or SAM 2, or the built-in subject finder -> a segmenter."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessLoadSegmenter",
            display_name="Load Segmenter (Likeness)",
            category="Likeness/segmentation",
            description="Loads what makes masks of boxes: a SAM from a folder in models/sams, a SAM 2 from one in "
            "models/sam2, or the small built-in subject finder, which needs no download.",
            inputs=[
                io.Combo.Input(
                    "segmenter",
                    options=[BUILT_IN, *network_folders(SAM2, SAMS)],
                    default=BUILT_IN,
                    tooltip="Folders below models/sam2 and models/sams, as on huggingface.co (config.json, "
                    "model.safetensors, preprocessor_config.json). Single files of the original code are listed, but "
                    "cannot be read: the message says which folder is needed.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(finders.PRECISIONS),
                    default=finders.AUTO,
                    tooltip="Of the weights. auto: fp16 on a GPU that is good at it, else fp32.",
                ),
                io.String.Input(
                    "hub_id",
                    default="",
                    optional=True,
                    tooltip=f"Instead of a folder: a model of huggingface.co, e.g. {EXAMPLE}. It lies in "
                    "models/sam2/owner--name; it is fetched only if allow_download is on.",
                ),
                io.Boolean.Input(
                    "allow_download",
                    default=False,
                    optional=True,
                    tooltip="Off: nothing is downloaded, ever. On: hub_id is fetched once (some 200 MB to 2.5 GB).",
                ),
            ],
            outputs=[Segmenter.Output(display_name="segmenter", tooltip="For Grounded Segment (Likeness).")],
        )

    @classmethod
    def fingerprint_inputs(cls, segmenter: str = BUILT_IN, **_: Any) -> str:
        """A folder that has changed is read again."""
        folder = network_folders(SAM2, SAMS).get(segmenter)
        return "" if folder is None else folder_stamp(folder)

    @classmethod
    def execute(cls, segmenter: str, precision: str, hub_id: str = "", allow_download: bool = False) -> io.NodeOutput:
        """Find the folder, read it."""
        if hub_id.strip():
            return io.NodeOutput(finders.segmenter(hub_folder(hub_id, allow_download, SAM2, EXAMPLE), precision))
        if segmenter == BUILT_IN:
            return io.NodeOutput(finders.subject_finder())
        return io.NodeOutput(finders.segmenter(chosen_folder(segmenter, SAM2, SAMS), precision))
