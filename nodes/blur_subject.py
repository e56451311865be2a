"""LikenessBlurSubject: blur away what a mask shows."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy_api.latest import io, ui

from ..segmentation.blur import DECAY, MODES, RADIUS, SCALES, Blur, blur_subject
from ..segmentation.masks import masks_for


class LikenessBlurSubject(io.ComfyNode):
    """IMAGE and MASK -> the picture without the object's detail, and how much each place was blurred."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Ids and order are the contract of saved workflows."""
        standard = Blur()
        return io.Schema(
            node_id="LikenessBlurSubject",
            display_name="Blur Subject (Likeness)",
            category="Likeness/segmentation",
            description="Blurs away what the mask shows, so that a subject can be painted in its place "
            "(Image-Alchemy). Outside of the blur's reach the picture stays as it is, bit for bit.",
            is_output_node=True,
            inputs=[
                io.Image.Input("images", tooltip="One picture or a batch. An alpha channel stays as it is."),
                io.Mask.Input("mask", tooltip="What to blur, e.g. from Grounded Segment: one for all, or one each."),
                io.Combo.Input(
                    "mode",
                    options=list(MODES),
                    default=DECAY,
                    tooltip="gaussian: inside of the mask. exponential decay: beyond it too, ever weaker, for a smooth "
                    "transition (the paper's choice). literal formula: as the paper writes it; it darkens the edge.",
                ),
                io.Int.Input(
                    "kernel",
                    default=standard.kernel,
                    min=1,
                    max=1001,
                    step=2,
                    tooltip="Width of the Gaussian's kernel in pixels, odd.",
                ),
                io.Float.Input(
                    "sigma",
                    default=standard.sigma,
                    min=0.1,
                    max=1000.0,
                    step=0.5,
                    tooltip="σ of the Gaussian in pixels. With 151 and 100 the kernel is nearly a box.",
                ),
                io.Float.Input(
                    "decay",
                    default=standard.decay,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="λ of the exponential decay: higher ends sooner outside of the mask; 0 never ends.",
                ),
                io.Combo.Input(
                    "distance_scale",
                    options=list(SCALES),
                    default=RADIUS,
                    tooltip="What the distance from the mask is divided by. pixels with λ = 5 is a hard edge.",
                ),
                io.Boolean.Input(
                    "scale_with_picture",
                    default=True,
                    tooltip="The pixels above are meant for a picture of 1024; others get as much in proportion. Off: "
                    "exactly these pixels.",
                ),
                io.Int.Input(
                    "mask_grow",
                    default=0,
                    min=-512,
                    max=512,
                    tooltip="Pixels that the mask is grown by first; below 0: shrunk.",
                ),
                io.Int.Input("mask_feather", default=0, min=0, max=512, tooltip="Pixels of a soft edge of the mask."),
            ],
            outputs=[
                io.Image.Output(display_name="images", tooltip="The pictures with the object blurred away."),
                io.Mask.Output(
                    display_name="weights",
                    tooltip="How much each place was blurred: 1 inside, 0 beyond the reach. Also a good soft mask for "
                    "Reinsert Subject.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        images: Any,
        mask: Any,
        mode: str,
        kernel: int,
        sigma: float,
        decay: float,
        distance_scale: str,
        scale_with_picture: bool,
        mask_grow: int,
        mask_feather: int,
    ) -> io.NodeOutput:
        """Picture by picture."""
        frames, height, width = images.shape[:3]
        blur = Blur(mode, kernel | 1, sigma, decay, distance_scale, mask_grow, mask_feather)
        blur = blur.for_size(height, width) if scale_with_picture else blur
        masks, bar = masks_for(mask, frames, height, width), comfy.utils.ProgressBar(frames)
        out, weights = torch.empty_like(images), torch.empty(frames, height, width)
        for number in range(frames):
            comfy.model_management.throw_exception_if_processing_interrupted()
            picture, weights[number] = blur_subject(images[number].permute(2, 0, 1), masks[number], blur)
            out[number] = picture.permute(1, 2, 0)
            bar.update(1)
        return io.NodeOutput(out, weights, ui=ui.PreviewImage(_beside(out, weights), cls=cls))


def _beside(images: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Each picture, and right of it its weights."""
    shown = images[..., :3].float().cpu()
    return torch.cat([shown, weights[..., None].expand(-1, -1, -1, shown.shape[-1])], 2)
