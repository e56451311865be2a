"""Pictures drawn while training, by the host's own sampler, with the adapters as they are at that step."""

from __future__ import annotations

import io
import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...lora.atomic import write_whole
from ..types import Samples
from .latents import zero_latents
from .memory import leave_device
from .text import Texts

log = logging.getLogger(__name__)


@dataclass
class Previewer:
    """Draws the grid of a step. Make it with :func:`prepare`, before the model is loaded for training."""

    samples: Samples
    patcher: comfy.model_patcher.ModelPatcher
    vae: Any
    texts: Texts

    def draw(self) -> Image.Image:
        """One picture a prompt, side by side. Call it with the training model loaded and gradients off."""
        wanted = self.samples
        empty = zero_latents(self.vae, self.patcher, wanted.width, wanted.height)
        patcher = _already_loaded(self.patcher)
        drawn = []
        with torch.no_grad(), torch.random.fork_rng():  # the host seeds torch's global generator
            negative = self.texts.conditioning(wanted.negative)
            for prompt in wanted.prompts:
                noise = comfy.sample.prepare_noise(empty, wanted.seed)
                drawn.append(
                    comfy.sample.sample(
                        patcher,
                        noise,
                        wanted.steps,
                        wanted.cfg,
                        wanted.sampler_name,
                        wanted.scheduler,
                        self.texts.conditioning(prompt),
                        negative,
                        empty.clone(),
                        disable_pbar=True,
                        seed=wanted.seed,
                    )
                )
            return grid(self._decode(torch.cat(drawn)), wanted.columns)

    def _decode(self, latents: Tensor) -> Tensor:
        """(B, H, W, 3) in [0, 1] by the VAE, or by the latents' colours alone where it would push the model out."""
        device = self.patcher.load_device
        if device.type != "cpu" and self.vae.device == device:
            needed = self.vae.memory_used_decode(latents.shape, self.vae.vae_dtype) + self.vae.patcher.model_size()
            reserve = comfy.model_management.minimum_inference_memory()
            if comfy.model_management.get_free_memory(device) < 1.2 * needed + reserve:
                log.warning("Likeness: too little memory to decode sample pictures beside training; showing latents.")
                return _latent_colours(self.patcher, latents)
        pixels: Tensor = self.vae.decode(latents)
        leave_device(self.vae)
        return pixels.reshape(-1, *pixels.shape[-3:])  # a video VAE gives frames


def prepare(samples: Samples, texts: Texts, patcher: comfy.model_patcher.ModelPatcher, vae: Any) -> Previewer:
    """Encode the prompts while the text encoder is loaded anyway, unless it is trained."""
    zero_latents(vae, patcher, samples.width, samples.height)  # a size that cannot be is better told now
    texts.keep((*samples.prompts, samples.negative))
    return Previewer(samples, patcher, vae, texts)


def save_grid(picture: Image.Image, folder: Path, step: int) -> Path:
    """Keep the grid of a step in the run's folder."""
    path = folder / "samples" / f"step-{step:06}.png"
    data = io.BytesIO()
    picture.save(data, "PNG")
    write_whole(path, [data.getvalue()])
    return path


def _already_loaded(patcher: comfy.model_patcher.ModelPatcher) -> comfy.model_patcher.ModelPatcher:
    """A clone that samples on the model as it stands.

    The host would load the model again before sampling, look its weights up by name, and not find those that have an
    adapter beside them.
    """
    clone = patcher.clone()

    def as_it_stands(execute: Any, model: Any, noise_shape: Any, conds: Any, *others: Any, **named: Any) -> Any:
        return model.model, conds, []

    clone.add_wrapper(comfy.patcher_extension.WrappersMP.PREPARE_SAMPLING, as_it_stands)
    return clone


def _latent_colours(patcher: comfy.model_patcher.ModelPatcher, latents: Tensor) -> Tensor:
    """(B, h, w, 3) by the latent format's linear map to RGB; grey where it has none."""
    latent_format = patcher.get_model_object("latent_format")
    if latents.ndim == 5:
        latents = latents[:, :, 0]
    factors = getattr(latent_format, "latent_rgb_factors", None)
    if factors is None:
        return latents.mean(1, keepdim=True).sigmoid().expand(-1, 3, -1, -1).movedim(1, -1).float()
    bias = getattr(latent_format, "latent_rgb_factors_bias", None)
    rgb = latents.movedim(1, -1).float() @ torch.tensor(factors, dtype=torch.float32, device=latents.device)
    if bias is not None:
        rgb = rgb + torch.tensor(bias, dtype=torch.float32, device=latents.device)
    return ((rgb + 1) / 2).clamp(0, 1)


def grid(pixels: Tensor, columns: int = 0) -> Image.Image:
    """Pictures (B, H, W, 3) in [0, 1] in rows of ``columns``; 0: about as wide as high."""
    count, height, width = pixels.shape[:3]
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, picture in enumerate((pixels.clamp(0, 1) * 255).round().byte().cpu().numpy()):
        row, column = divmod(index, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = picture[..., :3]
    return Image.fromarray(sheet)
