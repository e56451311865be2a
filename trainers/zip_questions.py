"""What a merged model is asked: a LoRA's own questions, answered by that LoRA alone and by the merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..lora.delta import LowRankDelta
from .batches import Batch, Batches
from .config import TrainingConfig
from .dataset import TrainingSet
from .denoiser import Cond, Denoiser
from .objectives import diffusion_loss
from .randomness import generator
from .rebinding import Rebinding
from .zip_branch import MERGED, ZipBranches

PROBES = 4
"""Batches of each concept on which the sum and the merge are measured, before and after; about 4% of 100 steps."""


@dataclass(frozen=True)
class Concept:
    """One of the LoRAs, and what it is asked.

    Attributes:
        name: for messages and plots.
        layers: canonical layer -> ΔW, the diffusion model's.
        data: latents and captions in its teacher's words.
        imagined: of the latents only the shape counts; in their place come the teacher's own first guess from pure
            noise, new ones at each step. No picture is needed then.
    """

    name: str
    layers: Mapping[str, LowRankDelta]
    data: TrainingSet
    imagined: bool = False


@dataclass(frozen=True)
class TwoConds:
    """A caption's condition where the LoRAs change the text encoders: as the merged ones make it, and the teacher's."""

    merged: Cond
    teacher: Cond


@dataclass(frozen=True)
class Fit:
    """How far a model is from a LoRA alone, on batches that training did not see.

    Mean squared errors of the network's prediction. base: of the model without any LoRA, which is what this LoRA does.
    plain: of the plain sum. merged: of the merge.
    """

    base: float
    plain: float
    merged: float


class ZipQuestions:
    """The questions of some concepts to a model that has their LoRAs beside its layers.

    Args:
        concepts: whose LoRAs ``branches`` holds, in that order.
        config: seed, batches and noise levels.
    """

    def __init__(
        self, denoiser: Denoiser, concepts: Sequence[Concept], config: TrainingConfig, branches: ZipBranches
    ) -> None:
        self.denoiser, self.concepts, self.config, self.branches = denoiser, concepts, config, branches
        kind = denoiser.parameterisation, getattr(denoiser, "patch_size", 2)
        self.batches = [Batches(each.data, denoiser.sigmas, denoiser.device, config, *kind) for each in concepts]
        # Until the first pass shows that the model needs none.
        self.rebinding: Rebinding | None = Rebinding()

    def fit(self, index: int, number: int, which: int, purpose: tuple[str, int]) -> Tensor:
        """The mean squared error between a model and a concept's teacher on one batch."""
        batch, noisy, taught = self.question(index, number, purpose)
        return self.error(batch, self.answer(batch, noisy, which), taught)

    def question(self, index: int, number: int, purpose: tuple[str, int]) -> tuple[Batch, Tensor, Tensor]:
        """(batch, noisy latents, the teacher's answer). All concepts draw the same noise and noise levels."""
        denoiser, concept = self.denoiser, self.concepts[index]
        batch = self.batches[index].draw(number, generator(self.config.seed, *purpose))
        conds = [cond.teacher if isinstance(cond, TwoConds) else cond for cond in batch.conds]
        with self.branches.only(index):
            if concept.imagined:
                chance = generator(self.config.seed, "imagined", *purpose)
                noise = torch.randn(batch.latents.shape, generator=chance).to(denoiser.device)
                highest = torch.full_like(batch.sigma, float(denoiser.sigmas[-1]))
                pure = denoiser.noise_scaling(highest, noise, torch.zeros_like(batch.latents))
                batch = replace(batch, latents=denoiser.denoise(pure, highest, conds))
            noisy = denoiser.noise_scaling(batch.sigma, batch.noise, batch.latents)
            return batch, noisy, denoiser.denoise(noisy, batch.sigma, conds)

    def answer(self, batch: Batch, noisy: Tensor, which: int) -> Tensor:
        conds = [cond.merged if isinstance(cond, TwoConds) else cond for cond in batch.conds]
        if which != MERGED or not torch.is_grad_enabled():
            with self.branches.only(which):
                return self.denoiser.denoise(noisy, batch.sigma, conds)
        with self.rebinding or nullcontext():
            predicted = self.denoiser.denoise(noisy, batch.sigma, conds)
        if self.rebinding is not None and not self.rebinding.count:
            self.rebinding = None
        return predicted

    def error(self, batch: Batch, predicted: Tensor, taught: Tensor) -> Tensor:
        kind = self.denoiser.parameterisation
        return diffusion_loss(predicted, taught, batch.sigma, kind, mask=batch.mask, factor=batch.factor)

    @torch.no_grad()
    def probes(self, models: Sequence[int]) -> list[tuple[float, ...]]:
        """Of each concept the mean error of each of the models, on noise that no step draws."""
        found = []
        for index in range(len(self.concepts)):
            totals = [0.0] * len(models)
            for number in range(PROBES):
                batch, noisy, taught = self.question(index, number, ("zip probe", number))
                for place, which in enumerate(models):
                    totals[place] += float(self.error(batch, self.answer(batch, noisy, which), taught)) / PROBES
            found.append(tuple(totals))
        return found
