"""The subject painted into a picture: img2img of the whole, of the masked part, or of a piece around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import comfy.hooks
import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from torch import Tensor
from torch.nn import functional

from ...segmentation.crop import Crop, blend, crop_around, cut, seam_error, stitch
from ...segmentation.masks import feather, grow, masks_for
from ...segmentation.strengths import Range, first_steps, read_ranges
from .applied import applied, fitted

WHOLE, MASKED, CROP = MODES = ("whole picture", "masked", "crop and stitch")


@dataclass(frozen=True)
class How:
    """Sampling (names as in the host's KSampler) and what is done around it.

    Attributes:
        mode: one of :data:`MODES`.
        strength: of the LoRA.
        ranges: factors of it by share of the steps, see :mod:`segmentation.strengths`; empty: 1.
        grow, feather: of the mask, in pixels of the picture.
        differential: places whose mask is below 1 are painted in the later steps only, so that edges melt.
        context: sides of the piece of ``crop and stitch``, of what is masked.
        size: the longer side that the piece is worked on at; 0: that of the picture.
    """

    mode: str
    seed: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float
    strength: float = 1.0
    ranges: str = ""
    grow: float = 0.0
    feather: float = 0.0
    differential: bool = True
    context: float = 1.6
    size: int = 0


@dataclass(frozen=True)
class Painter:
    """A model with the subject's LoRA, and what it is asked for."""

    patcher: Any
    vae: Any
    positive: list[list[Any]]
    negative: list[list[Any]]


@dataclass(frozen=True)
class Reinserted:
    """Pictures (B, H, W, C), the masks they were composited by (B, H, W), and a line of report for each."""

    pictures: Tensor
    masks: Tensor
    lines: list[str]


def with_lora(model: Any, clip: Any, lora: Any, how: How) -> tuple[Any, Any, Any]:
    """MODEL and CLIP with the LoRA, and the host's hooks by which its strength changes while sampling, or None.

    Raises:
        ValueError: the LoRA is of another model; the ranges are none.
    """
    ranges = read_ranges(how.ranges)
    if lora is None:
        if ranges:
            raise ValueError("strength_ranges is set, but no lora is connected: what is already in the model is fixed.")
        return model, clip, None
    if not ranges or len({each.strength for each in ranges}) == 1:
        factor = ranges[0].strength if ranges else 1.0
        model, clip, _ = applied(model, lora, how.strength * factor, clip, how.strength)
        return model, clip, None
    _, clip, _ = applied(model, lora, 0.0, clip, how.strength)
    changed, _, hooks = comfy.hooks.load_hook_lora_for_models(model, None, fitted(model, lora), how.strength, 0.0)
    hooks.set_keyframes_on_hooks(_keyframes(changed, ranges, how))
    return changed, clip, hooks


def hooked(conditioning: list[list[Any]], hooks: Any) -> list[list[Any]]:
    """The conditioning with the LoRA's hooks on it."""
    found: list[list[Any]] = comfy.hooks.set_hooks_for_conditioning(conditioning, hooks)
    return found


def _keyframes(patcher: Any, ranges: tuple[Range, ...], how: How) -> Any:
    """The host's keyframes begin at shares of the training's noise levels; the ranges are shares of these steps."""
    sampler = comfy.samplers.KSampler(
        patcher,
        steps=how.steps,
        device=patcher.load_device,
        sampler=how.sampler_name,
        scheduler=how.scheduler,
        denoise=how.denoise,
        model_options=patcher.model_options,
    )
    sigmas = sampler.sigmas.tolist()
    group = comfy.hooks.HookKeyframeGroup()
    for step, strength in first_steps(ranges, len(sigmas) - 1):
        between = 0.0 if step == 0 else percent_of(patcher.get_model_object("model_sampling"), sigmas, step)
        group.add(comfy.hooks.HookKeyframe(strength, between, guarantee_steps=0))
    return group


def percent_of(sampling: Any, sigmas: list[float], step: int) -> float:
    """The share at which the host's ``percent_to_sigma`` lies between the noise levels before and of a step."""
    middle = (sigmas[step - 1] + sigmas[step]) / 2
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        low, high = (share, high) if float(sampling.percent_to_sigma(share)) > middle else (low, share)
    return low


def reinsert(painter: Painter, base: Tensor, blurred: Tensor, masks: Tensor, how: How) -> Reinserted:
    """Paint into each picture of a batch.

    Args:
        base: (B, H, W, C): what stays where the mask is 0.
        blurred: (B, H, W, C) or one for all: what painting begins with.
        masks: the host's MASK.

    Raises:
        ValueError: counts or sizes do not fit.
    """
    frames, height, width = base.shape[:3]
    if blurred.shape[1:3] != (height, width) or len(blurred) not in (1, frames):
        raise ValueError(
            f"base is {frames} × {width}×{height} and blurred {len(blurred)} × {blurred.shape[2]}×{blurred.shape[1]}: "
            "both must be of one size, and blurred one picture, or one for each of base"
        )
    fitting = masks_for(masks, frames, height, width)
    callback = _callback(painter.patcher, frames)
    pictures, used, lines = base.detach().clone(), torch.zeros(frames, height, width), []
    for number in range(frames):
        comfy.model_management.throw_exception_if_processing_interrupted()
        mask = feather(grow(fitting[number], how.grow), how.feather)
        if not (mask > 0).any():
            lines.append(f"picture {number + 1}: the mask is empty; left as it was")
            continue
        picture = pictures[number, ..., :3].permute(2, 0, 1).float()
        start = blurred[number % len(blurred), ..., :3].permute(2, 0, 1).float()
        out, line = _one(painter, picture, start, mask, how, how.seed + number, callback(number))
        pictures[number, ..., :3] = out.permute(1, 2, 0)
        used[number] = torch.ones_like(mask) if how.mode == WHOLE else mask
        lines.append(f"picture {number + 1}: {line}")
    return Reinserted(pictures, used, lines)


def _one(
    painter: Painter, picture: Tensor, start: Tensor, mask: Tensor, how: How, seed: int, callback: Any
) -> tuple[Tensor, str]:
    if how.mode == WHOLE:
        return _paint(painter, start, None, how, seed, callback), "the whole picture was painted"
    share = float((mask > 0).float().mean())
    if how.mode == MASKED:
        out = blend(picture, _paint(painter, start, mask, how, seed, callback), mask)
        return out, f"{share:.1%} of it was painted; seam {seam_error(picture, out, mask):.4f}"
    crop = crop_around(mask, how.context, how.size or max(picture.shape[1:]), _ratio(painter.vae))
    assert isinstance(crop, Crop)
    piece = cut(mask[None], crop)[0]
    patch = _paint(painter, cut(start, crop), piece, how, seed, callback)
    out = stitch(picture, patch, mask, crop)
    return out, (
        f"{crop.right - crop.left}×{crop.bottom - crop.top} pixels at {crop.left}, {crop.top} were painted as "
        f"{crop.width}×{crop.height}; seam {seam_error(picture, out, mask):.4f}"
    )


def _paint(painter: Painter, start: Tensor, mask: Tensor | None, how: How, seed: int, callback: Any) -> Tensor:
    """(3, H, W) -> (3, H, W): img2img, of the masked part where there is a mask (H, W)."""
    height, width = start.shape[1:]
    ratio = _ratio(painter.vae)
    pad = (0, -width % ratio, 0, -height % ratio)  # the VAE would cut such pictures
    whole = functional.pad(start[None], pad, mode="replicate") if any(pad) else start[None]
    latent = painter.vae.encode(whole.permute(0, 2, 3, 1).contiguous())
    patcher, noise_mask = painter.patcher, None
    if mask is not None:
        noise_mask = functional.pad(mask[None, None], pad, mode="replicate")
        if how.differential:
            patcher = _differential(patcher)
        else:
            noise_mask = (noise_mask > 0).float()
    latent = comfy.sample.fix_empty_latent_channels(patcher, latent)
    samples = comfy.sample.sample(
        patcher,
        comfy.sample.prepare_noise(latent, seed),
        how.steps,
        how.cfg,
        how.sampler_name,
        how.scheduler,
        painter.positive,
        painter.negative,
        latent,
        denoise=how.denoise,
        noise_mask=noise_mask,
        callback=callback,
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    pixels: Tensor = painter.vae.decode(samples)
    pixels = pixels.reshape(-1, *pixels.shape[-3:])[:1, :height, :width, :3]  # a video VAE gives frames
    return pixels[0].permute(2, 0, 1).to("cpu", torch.float32)


def _differential(patcher: Any) -> Any:
    """The host's own node's doing."""
    from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion

    return DifferentialDiffusion.execute(patcher, 1.0).args[0]


def _ratio(vae: Any) -> int:
    """Pixels that a latent's place stands for."""
    ratio = getattr(vae, "downscale_ratio", 8)
    return int(ratio) if isinstance(ratio, int) else 8


def _callback(patcher: Any, frames: int) -> Callable[[int], Any]:
    """Of each frame: the bar goes on over all frames, with the host's preview."""
    previewer = latent_preview.get_previewer(patcher.load_device, patcher.model.latent_format)
    bar = comfy.utils.ProgressBar(frames)

    def of(frame: int) -> Any:
        def callback(step: int, x0: Tensor, x: Tensor, steps: int) -> None:
            preview = previewer.decode_latent_to_preview_image("JPEG", x0) if previewer else None
            bar.update_absolute(frame * steps + step + 1, frames * steps, preview)

        return callback

    return of
