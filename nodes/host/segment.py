"""A batch of pictures, one after the other: objects, masks, a report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor
from torch.nn import functional

from ...segmentation.components import objects_of_mask
from ...segmentation.found import Boxes, Detector, Objects, Segmenter
from ...segmentation.given import read_boxes, to_bounding_boxes
from ...segmentation.grounded import FindOptions, find_objects, split_phrases
from ...segmentation.overlay import draw_objects
from ...segmentation.report import report_json, report_markdown
from .finders import subject_finder


@dataclass(frozen=True)
class Segmented:
    """What the node gives: see its outputs."""

    mask: Tensor
    object_masks: Tensor
    bounding_boxes: list[list[dict[str, Any]]]
    report: str
    json: str
    overlay: Tensor


def found_in_batch(
    images: Tensor,
    text: str,
    options: FindOptions,
    detector: Detector | None,
    segmenter: Segmenter | None,
    given: Any,
    mask: Tensor | None,
) -> Segmented:
    """Every picture's objects.

    Args:
        images: the host's IMAGE, (B, H, W, C); alpha is left out, grey becomes RGB.
        text: the phrases.
        detector, segmenter: None: the built-in subject finder.
        given: boxes instead of a detector's, JSON text or a BOUNDING_BOX; None: none.
        mask: the host's MASK instead of all of that; None: none.

    Raises:
        ValueError: boxes or masks do not fit the batch; there is no picture.
    """
    frames, height, width = images.shape[:3]
    if not images.numel():
        raise ValueError(f"there is no picture in images {tuple(images.shape)}")
    phrases = split_phrases(text)
    label = phrases[0] if phrases else "object"
    boxes: list[Boxes | None] = [None] * frames if given is None else [*read_boxes(given, frames, label)]
    masks = None if mask is None else _masks(mask, frames, height, width)
    if masks is None:
        if given is None:
            detector = detector or subject_finder()
        segmenter = segmenter or subject_finder()
    about = _about(phrases, detector, segmenter, given, mask)
    bar = comfy.utils.ProgressBar(frames)
    check = comfy.model_management.throw_exception_if_processing_interrupted
    found, unions, overlays = [], torch.zeros(frames, height, width), torch.empty(frames, height, width, 3)
    for number in range(frames):
        check()
        picture = _picture(images[number])
        if masks is not None:
            objects = _of_masks(masks[number], label, options.most)
        else:
            assert segmenter is not None
            objects = find_objects(picture, phrases, detector, segmenter, options, boxes[number], check)
        unions[number] = objects.union
        overlays[number] = draw_objects(picture, objects).permute(1, 2, 0)
        found.append(objects)
        bar.update_absolute(number + 1, frames)
    report, data = report_markdown(found, options, about), report_json(found, options, about)
    return Segmented(unions, _joined(found, height, width), to_bounding_boxes(found), report, data, overlays)


def _picture(image: Tensor) -> Tensor:
    """(H, W, C) -> (3, H, W), float32 in [0, 1], on the CPU."""
    picture = image.detach().to("cpu", torch.float32).clamp(0, 1)
    picture = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1].expand(-1, -1, 3)
    return picture.permute(2, 0, 1).contiguous()


def _masks(mask: Tensor, frames: int, height: int, width: int) -> list[Tensor]:
    """The masks of each picture, (n, H, W): one a picture, or all of the only picture's."""
    mask = mask.detach().to("cpu", torch.float32).reshape(-1, *mask.shape[-2:]).clamp(0, 1)
    if mask.shape[1:] != (height, width):
        mask = functional.interpolate(mask[None], (height, width), mode="bilinear", antialias=True)[0]
    if frames == 1:
        return [mask]
    if len(mask) not in (1, frames):
        raise ValueError(f"mask has {len(mask)} masks, but there are {frames} pictures; give one for all, or one each")
    return [mask[number % len(mask)][None] for number in range(frames)]


def _of_masks(masks: Tensor, label: str, most: int) -> Objects:
    """One mask: its pieces are objects. Several: each that is not empty is one."""
    if len(masks) == 1:
        return objects_of_mask(masks[0], label, most=most)
    whole = [mask for mask in masks if (mask > 0.5).any()][:most]
    if not whole:
        return Objects.none(*masks.shape[1:])
    boxes = []
    for mask in whole:
        rows, columns = (mask > 0.5).any(1).nonzero(), (mask > 0.5).any(0).nonzero()
        boxes.append([int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1])
    scores = torch.tensor([float(mask[mask > 0.5].mean()) for mask in whole])
    return Objects(torch.stack(whole), torch.tensor(boxes, dtype=torch.float32), scores, (label,) * len(whole))


def _joined(found: list[Objects], height: int, width: int) -> Tensor:
    """All masks in one (N, H, W); one empty where there is none, for the host's MASK has at least one.

    Of a single picture nothing is copied: 64 masks of 4096² take 4.3 GB once.
    """
    some = [objects.masks for objects in found if len(objects)]
    if not some:
        return torch.zeros(1, height, width)
    return some[0] if len(some) == 1 else torch.cat(some)


def _about(
    phrases: tuple[str, ...], detector: Detector | None, segmenter: Segmenter | None, given: Any, mask: Tensor | None
) -> dict[str, Any]:
    if mask is not None:
        return {"phrases": ", ".join(phrases), "masks": "given"}
    return {
        "phrases": ", ".join(phrases),
        "detector": detector.name if given is None and detector is not None else "boxes given",
        "segmenter": segmenter.name if segmenter is not None else "",
    }
