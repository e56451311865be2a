"""What one batch is: examples, noise and noise levels, all decided by the seed and the step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Cond, Parameterisation
from .levels import draw_sigmas, explicit_shift, timesteps
from .noise import perturbed_target, pyramid_noise
from .objectives import loss_factor, scheduled_huber_c
from .order import Order
from .randomness import generator

_RESIDENT_BYTES = 1 << 29
"""Latents up to this size are kept on the device; larger sets travel a batch at a time."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass needs, on the device.

    Attributes:
        latents: (B, C, …) float32 x₀.
        noise: of the same shape; with it the latents are noised.
        sigma: (B,) to these levels.
        mask: (B, h, w) the loss counts so much, or None.
        conds: B of them.
        target: (B, C, …) what x̂₀ is compared with: the latents, unless the noise is perturbed.
        factor: (B,) of each picture's loss, or None.
        huber_c: (B,) or None: squared error.
    """

    latents: Tensor
    noise: Tensor
    sigma: Tensor
    mask: Tensor | None
    conds: Sequence[Cond]
    target: Tensor
    factor: Tensor | None = None
    huber_c: Tensor | None = None


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

    def __init__(
        self,
        data: TrainingSet,
        sigmas: Tensor,
        device: torch.device,
        config: TrainingConfig,
        parameterisation: Parameterisation = "eps",
        patch_size: int = 2,
    ) -> None:
        """Args:
        data: that :func:`check_data` found good.
        sigmas: (N,) of the model, ascending.
        device: where batches go.
        config: validated.
        parameterisation: of the model.
        patch_size: of the model's image tokens, in latents; only shifting by resolution asks.
        """
        if sigmas.ndim != 1 or not len(sigmas) or not bool((sigmas > 0).all()):
            raise ValueError("The model's sigmas must be a list of positive numbers.")
        self._config = config
        self._device = device
        self._sigmas = sigmas.detach().to("cpu", torch.float32)
        self._parameterisation = parameterisation
        self._patch_size = patch_size
        self._empties = [data.empty if example.empty is None else example.empty for example in data.examples]
        self._conds = [example.variants or (example.cond,) for example in data.examples]
        size = sum(example.latents.numel() * (8 if example.flipped is not None else 4) for example in data.examples)
        home = device if size <= _RESIDENT_BYTES else torch.device("cpu")
        masked = any(example.mask is not None for example in data.examples)
        # For each example the picture as it is and mirrored, (latents, mask) each.
        self._pictures: list[tuple[tuple[Tensor, Tensor | None], ...]] = []
        for example in data.examples:
            mask = example.mask
            if masked and mask is None:
                mask = torch.ones(example.latents.shape[-2:])
            if mask is not None and config.unmasked_weight > 0:
                mask = mask.clamp(min=config.unmasked_weight)
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
            [example.subject for example in data.examples] if data.balanced else None,
        )

    def draw(self, number: int, chance: torch.Generator) -> Batch:
        """Batch ``number`` of the run, from 0; all chance from a CPU generator."""
        config = self._config
        indices = self._order.batch(number)
        count = len(indices)
        # Everything is drawn whether it is used or not, so that one option does not change what another draws.
        flips = torch.rand(count, generator=chance).tolist()
        drops = torch.rand(count, generator=chance).tolist()
        chosen = [
            self._pictures[index][int(flip < 0.5 and len(self._pictures[index]) > 1)]
            for index, flip in zip(indices, flips, strict=True)
        ]
        latents = _stacked([picture for picture, _ in chosen], self._device)
        masks = [mask for _, mask in chosen if mask is not None]
        tokens = latents.shape[-2] * latents.shape[-1] / self._patch_size**2
        sigma = draw_sigmas(
            self._sigmas,
            count,
            chance,
            config.timestep_sampling,
            parameterisation=self._parameterisation,
            mean=config.timestep_mean,
            std=config.timestep_std,
            mode_scale=config.timestep_mode_scale,
            shift=explicit_shift(config, tokens),
        )
        noise, seen = self._noises(latents.shape, number, chance)
        noise = noise.to(self._device)
        target = latents
        if seen is not None:
            seen = seen.to(self._device)
            target = perturbed_target(
                latents, sigma.to(self._device), self._parameterisation, config.input_perturbation, seen
            )
            noise = noise + config.input_perturbation * seen
        factor = loss_factor(sigma, self._parameterisation, config)
        return Batch(
            latents=latents,
            noise=noise,
            sigma=sigma.to(self._device),
            mask=_stacked(masks, self._device) if masks else None,
            conds=self._captions(indices, drops, number),
            target=target,
            factor=None if factor is None else factor.to(self._device),
            huber_c=self._huber_c(sigma),
        )

    def _noises(self, shape: Sequence[int], number: int, chance: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """The noise, and ξ that perturbs it for the network's eyes only, or None; both on the CPU."""
        config = self._config
        noise = torch.randn(shape, generator=chance)
        if config.pyramid_levels > 0:
            # Options that came later draw from generators of their own, and change nothing that was drawn before.
            own = generator(config.seed, "pyramid", number)
            noise = pyramid_noise(noise, own, config.pyramid_levels, config.pyramid_discount)
        if config.noise_offset > 0:
            noise += config.noise_offset * torch.randn(*shape[:2], *[1] * (len(shape) - 2), generator=chance)
        if config.input_perturbation == 0:
            return noise, None
        return noise, torch.randn(shape, generator=generator(config.seed, "perturbation", number))

    def _captions(self, indices: Sequence[int], drops: Sequence[float], number: int) -> list[Cond]:
        """A condition for each picture: that of one of its caption's variants, or the empty caption's."""
        picks = torch.rand(len(indices), generator=generator(self._config.seed, "caption", number)).tolist()
        conds = [
            self._conds[index][int(pick * len(self._conds[index]))] for index, pick in zip(indices, picks, strict=True)
        ]
        return [
            self._empties[index] if drop < self._config.caption_dropout else cond
            for index, drop, cond in zip(indices, drops, conds, strict=True)
        ]

    def _huber_c(self, sigma: Tensor) -> Tensor | None:
        """(B,) on the device, or None when the loss is the squared error. ``sigma`` on the CPU."""
        config = self._config
        if config.loss != "huber":
            return None
        timestep = timesteps(sigma, self._sigmas, self._parameterisation)
        c = scheduled_huber_c(sigma, timestep, self._parameterisation, config.huber_c, config.huber_schedule)
        return c.to(self._device)


def _owned(tensor: Tensor, device: torch.device) -> Tensor:
    """float32 on the device, and no inference tensor, for such a one cannot be saved for the backward pass."""
    moved = tensor.detach().to(device, torch.float32)
    return moved.clone() if moved.is_inference() else moved


def _stacked(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    stacked = tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))
    return stacked.to(device)
