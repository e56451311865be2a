"""LikenessGroundedSegment: where in the pictures is what the phrases name."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..segmentation.choose import RULES
from ..segmentation.grounded import FindOptions
from .host import segment
from .types import Grounding, Segmenter

BoundingBox = io.Custom("BOUNDING_BOX")
"""Newer hosts' own type: a list a frame, of dicts with x, y, width and height. Older hosts know it by name alone."""


class LikenessGroundedSegment(io.ComfyNode):
    """Pictures and phrases -> masks, boxes, a report, and a picture of it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = FindOptions()
        part = {"min": 0.0, "max": 1.0, "step": 0.01, "round": 0.0001}
        return io.Schema(
            node_id="LikenessGroundedSegment",
            display_name="Grounded Segment (Likeness)",
            category="Likeness/segmentation",
            description="Finds what the phrases name in each picture and makes masks of it: a detector finds boxes, a "
            "segmenter offers three masks a box, and the best is taken (Grounded SAM, Image-Alchemy). Boxes and masks "
            "of other nodes can be used instead. Without a detector and segmenter, the built-in subject finder works.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="One picture or a batch. As many masks come out, in this order."),
                io.String.Input(
                    "phrases",
                    default="subject",
                    multiline=True,
                    placeholder="a cat\na remote control",
                    tooltip="What to look for; several: a line each, or commas between. Short nouns work best.",
                ),
                io.Float.Input(
                    "box_threshold",
                    default=standard.box_threshold,
                    **part,
                    tooltip="The score that a box needs. Lower finds more, and more that is wrong.",
                ),
                io.Float.Input(
                    "text_threshold",
                    default=standard.text_threshold,
                    **part,
                    tooltip="The score by which a word becomes part of a box's label.",
                ),
                io.Int.Input(
                    "max_objects",
                    default=standard.most,
                    min=1,
                    max=64,
                    tooltip="So many objects a picture at most: those with the best scores.",
                ),
                io.Combo.Input(
                    "choice",
                    options=list(RULES),
                    default=standard.rule,
                    tooltip="Which of the segmenter's masks is taken. Eq. 3: the largest IoU(M, B) − λ · |M| / |B|, M "
                    "the mask and B the box. Or the mask that the model itself thinks best.",
                ),
                io.Float.Input(
                    "area_penalty",
                    default=standard.penalty,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    round=0.0001,
                    tooltip="λ of Eq. 3: what a mask as large as its box costs. Higher takes smaller masks, and spares "
                    "what is outside of the box.",
                ),
                io.Float.Input(
                    "overlap",
                    default=standard.overlap,
                    **part,
                    tooltip="Boxes that overlap a better one by more than this IoU are duplicates. 1: all are kept.",
                ),
                Grounding.Input(
                    "grounding", optional=True, tooltip="From Load Grounding. None: the built-in subject finder."
                ),
                Segmenter.Input(
                    "segmenter", optional=True, tooltip="From Load Segmenter. None: the built-in subject finder."
                ),
                io.String.Input(
                    "boxes",
                    optional=True,
                    force_input=True,
                    tooltip="Boxes instead of a detector's, as JSON: [[x0, y0, x1, y1], …] in pixels for every "
                    "picture, a list of such lists for one each, or the json of this node.",
                ),
                BoundingBox.Input(
                    "bounding_boxes",
                    optional=True,
                    tooltip="Boxes instead of a detector's, from a node of the host (RT-DETR, SAM 3 Detect, faces).",
                    extra_dict={"forceInput": True},
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Masks of any node (SAM 3, a background remover, a brush), one a picture or one for all: "
                    "each connected piece becomes an object, and nothing else is looked for. Several masks and one "
                    "picture: each mask is an object.",
                ),
            ],
            outputs=[
                io.Mask.Output(display_name="mask", tooltip="All objects of a picture in one, as many as pictures."),
                io.Mask.Output(
                    display_name="object_masks",
                    tooltip="One an object; the report says which picture each is of. One empty mask if none is found.",
                ),
                BoundingBox.Output(
                    display_name="bounding_boxes", tooltip="The boxes as newer hosts pass them: a list a picture."
                ),
                io.String.Output(
                    display_name="report", tooltip="Objects, and every candidate's terms of the choice. Markdown."
                ),
                io.String.Output(display_name="json", tooltip="The same for programs, with boxes in pixels."),
                io.Image.Output(display_name="overlay", tooltip="The pictures with masks, boxes and labels drawn on."),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Any,
        phrases: str,
        box_threshold: float,
        text_threshold: float,
        max_objects: int,
        choice: str,
        area_penalty: float,
        overlap: float,
        grounding: Any = None,
        segmenter: Any = None,
        boxes: str | None = None,
        bounding_boxes: Any = None,
        mask: Any = None,
    ) -> io.NodeOutput:
        """Look at each picture in turn."""
        options = FindOptions(box_threshold, text_threshold, max_objects, overlap, choice, area_penalty)
        given = bounding_boxes if boxes is None else boxes
        found = segment.found_in_batch(images, phrases, options, grounding, segmenter, given, mask)
        return io.NodeOutput(
            found.mask,
            found.object_masks,
            found.bounding_boxes,
            found.report,
            found.json,
            found.overlay,
            ui=ui.PreviewImage(found.overlay, cls=cls),
        )
