"""Captions -> what the model takes, once, before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import comfy.model_base
import comfy.model_patcher
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor

from ...trainers.dataset import Picture
from .denoiser import HostCond

GUIDANCE = 1.0
"""Flux-like models distilled on a guidance scale are trained at 1: the caption as it is, not exaggerated."""

UNGUIDED = ("Chroma",)
"""Classes of the host's models that take a guidance too, but were only ever shown the host's default (0)."""


def guidance_of(model: Any) -> dict[str, float]:
    """The guidance to train a model at, as an entry of a CONDITIONING; models without one ignore it."""
    unguided = tuple(kind for name in UNGUIDED if (kind := getattr(comfy.model_base, name, None)))
    return {} if isinstance(model, unguided) else {"guidance": GUIDANCE}


def check_length(clip: Any, caption: str, source: str) -> None:
    """A caption must fit the text encoder in one piece.

    The host would cut a longer one in pieces of its own and go on silently; a model trained on that learns half a
    sentence. Where a model has several text encoders, it is enough that one (T5, say) takes the caption whole.

    Raises:
        ValueError: names the file, the caption, its length and the limit.
    """
    tokenized = clip.tokenize(caption, return_word_ids=True)
    if not isinstance(tokenized, Mapping) or not tokenized:
        return
    if any(len(chunks) <= 1 for chunks in tokenized.values()):
        return
    lengths = {}
    for name, chunks in tokenized.items():
        words = sum(1 for chunk in chunks for token in chunk if len(token) > 2 and token[2])
        limit = len(chunks[0]) - 2  # less the start and the end
        lengths[name] = f"{words} tokens for {name!r}, whose limit is {limit}"
    shown = caption if len(caption) <= 120 else caption[:117] + "..."
    raise ValueError(
        f"The caption of {source} is longer than the text encoder: {'; '.join(lengths.values())}. Shorten it: {shown!r}"
    )


def encode_text(clip: Any, text: str) -> list[list[Any]]:
    """The host's CONDITIONING of a text."""
    conditioning: list[list[Any]] = clip.encode_from_tokens_scheduled(clip.tokenize(text))
    return conditioning


def size_conditions(picture: Picture) -> dict[str, int]:
    """SDXL's picture size and crop, under the names of the host's CLIPTextEncodeSDXL."""
    (height, width), (top, left), (target_height, target_width) = (
        picture.original_size,
        picture.crop,
        picture.target_size,
    )
    return {
        "width": width,
        "height": height,
        "crop_w": left,
        "crop_h": top,
        "target_width": target_width,
        "target_height": target_height,
    }


def make_cond(
    patcher: comfy.model_patcher.ModelPatcher,
    conditioning: list[list[Any]],
    latents: Tensor,
    sizes: Mapping[str, int],
) -> HostCond:
    """What the model makes of a conditioning and of the latents' shape.

    Args:
        patcher: the model.
        conditioning: of one text; with several entries (scheduled prompts) the first counts.
        latents: (1, C, …), its shape is what matters.
        sizes: of the picture, see :func:`size_conditions`.
    """
    text, more = conditioning[0]
    entry = comfy.sampler_helpers.convert_cond([[text, {**guidance_of(patcher.model), **more, **sizes}]])
    device = patcher.load_device
    noise = torch.zeros_like(latents, device=device)
    (encoded,) = comfy.samplers.encode_model_conds(
        patcher.model.extra_conds,
        entry,
        noise,
        device,
        "positive",
        latent_image=noise,
        denoise_mask=None,
        seed=0,
        latent_shapes=[tuple(noise.shape)],
    )
    conds = {name: cond.process_cond(batch_size=1, area=None) for name, cond in encoded["model_conds"].items()}
    return HostCond(conds)


def moved_cond(cond: HostCond, device: torch.device) -> HostCond:
    """The same on ``device``, with its history."""
    return _each(cond, lambda tensor: tensor.to(device))


def detach_cond(cond: HostCond, device: torch.device) -> HostCond:
    """The same on ``device``, of ordinary tensors. Call it outside of inference mode."""
    return _each(cond, lambda tensor: tensor.detach().clone().to(device))


def _each(cond: HostCond, change: Callable[[Tensor], Tensor]) -> HostCond:
    """The same with each tensor changed."""

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, (list, tuple)):
            return type(value)(changed(item) for item in value)
        return value

    return HostCond({name: entry._copy_with(changed(entry.cond)) for name, entry in cond.model_conds.items()})
