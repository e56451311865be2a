"""LikenessDataset: pictures and captions to train on."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainers.dataset import from_images, load_folder
from ..trainers.reading import ALPHAS
from ..trainers.sheet import preview_sheet
from . import host
from .types import Dataset


class LikenessDataset(io.ComfyNode):
    """A folder of pictures, or a batch of them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        return io.Schema(
            node_id="LikenessDataset",
            display_name="Dataset (Likeness)",
            category="Likeness/trainers",
            description="Pictures of the subject: a folder below ComfyUI's input folder, or an image batch. A .txt "
            "file beside a picture is its caption; the others are captioned by the template.",
            inputs=[
                io.String.Input(
                    "folder",
                    default="",
                    tooltip="Folder below ComfyUI's input folder, such as my_dog. Leave it empty when images is wired.",
                ),
                io.String.Input(
                    "trigger",
                    default="sks",
                    tooltip="The word that will stand for the subject. Choose one that means nothing to the model.",
                ),
                io.String.Input("class_noun", default="subject", tooltip="What it is: dog, person, backpack, style …"),
                io.String.Input(
                    "caption_template",
                    default="a picture of {trigger} {class}",
                    tooltip="Caption of pictures without a .txt file. {trigger} and {class} are filled in.",
                ),
                io.Int.Input(
                    "resolution",
                    default=512,
                    min=16,
                    max=8192,
                    step=8,
                    tooltip="Pictures are scaled to about resolution × resolution pixels in their own aspect ratio. "
                    "Smaller ones are never enlarged. 512 for SD1.5, 1024 for SDXL and later.",
                ),
                io.Int.Input("repeats", default=1, min=1, max=10_000, tooltip="Times each picture is seen an epoch."),
                io.Boolean.Input(
                    "flip",
                    default=False,
                    tooltip="Mirror half of the time. Not for faces, text, or whatever has a left and a right.",
                ),
                io.Image.Input("images", optional=True, tooltip="A batch of pictures, instead of a folder."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="One mask for all images, or one each: the loss counts where it is white.",
                ),
                io.Combo.Input(
                    "alpha",
                    options=list(ALPHAS),
                    default="composite",
                    optional=True,
                    tooltip="What transparency in a picture means. composite: laid on white. mask: the loss counts "
                    "where the picture is opaque. A mask of its own (cat-masklabel.png for cat.jpg) goes first.",
                ),
            ],
            outputs=[
                Dataset.Output(display_name="dataset", tooltip="For the dataset input of Train LoRA."),
                io.Image.Output(display_name="preview", tooltip="The pictures as they will be seen, with captions."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **others: Any) -> str:
        """Names, sizes and times of the folder's files, so that a changed folder is read again."""
        return host.folder_fingerprint(folder)

    @classmethod
    def execute(
        cls,
        folder: str,
        trigger: str,
        class_noun: str,
        caption_template: str,
        resolution: int,
        repeats: int,
        flip: bool,
        images: Any = None,
        mask: Any = None,
        alpha: str = "composite",
    ) -> io.NodeOutput:
        """Read the pictures."""
        common: dict[str, Any] = {
            "trigger": trigger,
            "class_noun": class_noun,
            "caption_template": caption_template,
            "resolution": resolution,
            "repeats": repeats,
            "flip": flip,
            "alpha": alpha,
        }
        if images is not None and folder.strip():
            raise ValueError("Both a folder and images are given. Empty folder, or disconnect images.")
        with host.ordinary_tensors():
            if images is not None:
                pictures = from_images(images.clone(), None if mask is None else mask.clone(), **common)
            else:
                if mask is not None:
                    raise ValueError("mask is for images; for a folder, disconnect it.")
                pictures = load_folder(host.input_folder(folder), **common)
            return io.NodeOutput(pictures, preview_sheet(pictures))
