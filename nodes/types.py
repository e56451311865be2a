"""The pack's socket types and what travels on them."""

from __future__ import annotations

from dataclasses import dataclass

from comfy_api.latest import io

Dataset = io.Custom("LIKENESS_DATASET")
"""Carries a ``trainers.dataset.PictureSet``."""

TrainingOptions = io.Custom("LIKENESS_TRAINING_OPTIONS")
"""Carries a dict of ``trainers.config.TrainingConfig`` fields; what it does not name keeps its default."""

SamplePrompts = io.Custom("LIKENESS_SAMPLE_PROMPTS")
"""Carries a :class:`Samples`."""

LoraModel = io.Custom("LORA_MODEL")
"""The host's own type, a dict of tensors; ours carries a ``lora.model.LoraTensors``, which is one."""


@dataclass(frozen=True)
class Samples:
    """Pictures to draw while training.

    Attributes:
        prompts: one picture each.
        negative: what the pictures should not show.
        seed: of the noise, the same for each prompt and at each step, so that pictures can be compared.
        every: training steps between two rounds.
        steps, cfg, sampler_name, scheduler: as in the host's KSampler.
        width, height: in pixels.
    """

    prompts: tuple[str, ...]
    negative: str
    seed: int
    every: int
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    width: int
    height: int
