"""Pictures -> latents in the model's space, once, before training."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.sample
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...trainers.dataset import Picture


def encode_picture(vae: Any, patcher: comfy.model_patcher.ModelPatcher, picture: Picture, *, mirrored: bool) -> Tensor:
    """(1, C, …) float32 latents, scaled and shifted as the model was trained on.

    The host's VAE may draw its latents at random; the caller seeds that.
    """
    pixels = picture.pixels.unsqueeze(0).float() / 255.0  # (1, H, W, 3)
    if mirrored:
        pixels = pixels.flip(2)
    latents = vae.encode(pixels)
    if getattr(latents, "is_nested", False):
        raise ValueError("Likeness cannot train models whose latents are of several shapes (video with sound) yet.")
    channels = patcher.get_model_object("latent_format").latent_channels
    if latents.shape[1] != channels:
        raise ValueError(
            f"The VAE makes latents of {latents.shape[1]} channels but the model takes {channels}: "
            "wire the VAE that belongs to the model."
        )
    latents = comfy.sample.fix_empty_latent_channels(patcher, latents)  # adds the time axis where the model has one
    scaled: Tensor = patcher.model.process_latent_in(latents).float().cpu()
    return scaled


def latent_mask(picture: Picture, latents: Tensor) -> Tensor | None:
    """The picture's mask at the size of its latents (1, C, …, h, w), by area: (h, w) float32."""
    if picture.mask is None:
        return None
    size = (int(latents.shape[-2]), int(latents.shape[-1]))
    small = interpolate(picture.mask[None, None].float(), size=size, mode="area")
    return small[0, 0].clone()


def zero_latents(vae: Any, patcher: comfy.model_patcher.ModelPatcher, width: int, height: int) -> Tensor:
    """What an "empty latent" node gives: (1, C, …) zeros for a picture of so many pixels."""
    ratio = int(vae.spacial_compression_encode())
    if min(width, height) < ratio:
        raise ValueError(f"Sample pictures of {width}×{height} are too small: the VAE needs at least {ratio} pixels.")
    channels = patcher.get_model_object("latent_format").latent_channels
    latents: Tensor = comfy.sample.fix_empty_latent_channels(
        patcher, torch.zeros(1, channels, height // ratio, width // ratio)
    )
    return latents
