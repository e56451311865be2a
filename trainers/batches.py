"""What one batch is: examples, noise and noise levels, all decided by the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Cond
from .objectives import draw_sigmas
from .order import Order

_RESIDENT_BYTES = 1 << 29
"""Latents up to this size are kept on the device; larger sets travel a batch at a time."""


@dataclass(frozen=True)
class Batch:
    """latents and noise (B, C, …) float32, sigma (B,) and mask (B, h, w) or None, on the device; B conds."""

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    mask: Tensor | None
    conds: Sequence[Cond]


def check_data(data: TrainingSet) -> None:
    """Whether a training set can be trained on.

    Raises:
        ValueError: names the example (counted from 1) and what is wrong with it.
    """
    if not data.examples:
        raise ValueError("There is nothing to train on: the training set has no examples.")
    for number, example in enumerate(data.examples, 1):
        latents, mask = example.latents, example.mask
        if latents.ndim < 3:
            raise ValueError(f"Latents of example {number} are {tuple(latents.shape)}; expected (C, h, w), no batch.")
        if not bool(latents.isfinite().all()):
            raise ValueError(
                f"Latents of example {number} hold NaN or infinite numbers. The VAE probably overflowed in fp16: "
                f"start ComfyUI with --fp32-vae or --bf16-vae."
            )
        if example.flipped is not None and example.flipped.shape != latents.shape:
            raise ValueError(
                f"Example {number} is {tuple(latents.shape)} and mirrored {tuple(example.flipped.shape)}; "
                f"they must be alike."
            )
        if mask is not None and mask.shape != latents.shape[-2:]:
            raise ValueError(
                f"The mask of example {number} is {tuple(mask.shape)}; expected {tuple(latents.shape[-2:])}."
            )
        if mask is not None and not float(mask.sum()) > 0:
            raise ValueError(f"The mask of example {number} is empty, so nothing of it would be learnt. Leave it out.")
        if example.repeats < 1:
            raise ValueError(f"Example {number} has {example.repeats} repeats; expected at least 1.")


class Batches:
    """Draws batches. What can be done once is done here: moves, casts and clones out of inference mode."""

    def __init__(self, data: TrainingSet, sigmas: Tensor, device: torch.device, config: TrainingConfig) -> None:
        if sigmas.ndim != 1 or not len(sigmas) or not bool((sigmas > 0).all()):
            raise ValueError("The model's sigmas must be a list of positive numbers.")
        self._config = config
        self._device = device
        self._sigmas = sigmas.detach().to("cpu", torch.float32)
        self._empty = data.empty
        self._conds = [example.cond for example in data.examples]
        size = sum(example.latents.numel() * (8 if example.flipped is not None else 4) for example in data.examples)
        home = device if size <= _RESIDENT_BYTES else torch.device("cpu")
        masked = any(example.mask is not None for example in data.examples)
        # For each example the picture as it is and mirrored, (latents, mask) each.
        self._pictures: list[tuple[tuple[Tensor, Tensor | None], ...]] = []
        for example in data.examples:
            mask = example.mask
            if masked and mask is None:
                mask = torch.ones(example.latents.shape[-2:])
            ways = [(_owned(example.latents, home), None if mask is None else _owned(mask, home))]
            if example.flipped is not None:
                mirrored = None if mask is None else _owned(mask.flip(-1), home)
                ways.append((_owned(example.flipped, home), mirrored))
            self._pictures.append(tuple(ways))
        self._order = Order(
            [tuple(example.latents.shape) for example in data.examples],
            [example.repeats for example in data.examples],
            config.batch_size,
            config.seed,
        )

    def draw(self, number: int, chance: torch.Generator) -> Batch:
        """Batch ``number`` of the run, from 0; all chance from a CPU generator."""
        config = self._config
        indices = self._order.batch(number)
        count = len(indices)
        # Everything is drawn whether it is used or not, so that one option does not change what another draws.
        flips = torch.rand(count, generator=chance).tolist()
        drops = torch.rand(count, generator=chance).tolist()
        sigma = draw_sigmas(
            self._sigmas,
            count,
            chance,
            config.timestep_sampling,
            config.timestep_mean,
            config.timestep_std,
            config.timestep_shift,
        )
        chosen = [
            self._pictures[index][int(flip < 0.5 and len(self._pictures[index]) > 1)]
            for index, flip in zip(indices, flips, strict=True)
        ]
        latents = _stacked([picture for picture, _ in chosen], self._device)
        masks = [mask for _, mask in chosen if mask is not None]
        noise = torch.randn(latents.shape, generator=chance)
        if config.noise_offset > 0:
            noise += config.noise_offset * torch.randn(*latents.shape[:2], *[1] * (latents.ndim - 2), generator=chance)
        return Batch(
            latents=latents,
            noise=noise.to(self._device),
            sigma=sigma.to(self._device),
            mask=_stacked(masks, self._device) if masks else None,
            conds=[
                self._empty if drop < config.caption_dropout else self._conds[index]
                for index, drop in zip(indices, drops, strict=True)
            ],
        )


def _owned(tensor: Tensor, device: torch.device) -> Tensor:
    """float32 on the device, and no inference tensor, for such a one cannot be saved for the backward pass."""
    moved = tensor.detach().to(device, torch.float32)
    return moved.clone() if moved.is_inference() else moved


def _stacked(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    stacked = tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
    return stacked.to(device)
