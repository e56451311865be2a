"""Keeping what the model knew: prior preservation and prior prediction.

A model taught one subject by a few pictures forgets others. A second term, λ times the loss on what is to be kept,
holds it. What is to be kept are class pictures (of a folder, or drawn once by the base model), or, where there are
none, the training pictures themselves under captions with the class noun in the subject's place. Its target is

- the class picture: prior preservation (Ruiz et al. 2022, DreamBooth, arXiv 2208.12242, eq. 2);
- what the base model, its adapters off, predicts for the same noisy latents: prior prediction. It is zero for the
  untrained adapter and has none of the noise of the other, so it holds the model as it is rather than near the
  pictures; any latents and any captions serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .batches import Batch, Batches, check_data
from .config import TrainingConfig
from .dataset import Example, TrainingSet
from .denoiser import Parameterisation
from .randomness import derived_seed

EMPTY_SHARE = 0.1
"""Of the captions in prior prediction: guidance draws with the empty one too, and it must not drift either."""


def is_predicted(data: TrainingSet, config: TrainingConfig) -> bool:
    """Is the base model's own prediction the target?"""
    return config.prior_target == "prediction" or not data.prior


def prior_examples(data: TrainingSet) -> tuple[Example, ...]:
    """What is to be kept: the class pictures, or the training pictures under their class captions.

    Raises:
        ValueError: neither is there.
    """
    if data.prior:
        return data.prior
    # Without masks: outside of the subject the model is to stay as it is, too.
    found = tuple(
        replace(example, cond=example.prior_cond, variants=(), mask=None)
        for example in data.examples
        if example.prior_cond is not None
    )
    if not found:
        raise ValueError(
            "prior_weight is above 0, but there is nothing to keep: give class pictures or prior prompts, or captions "
            "that name the trigger word, so that the class noun can stand in its place."
        )
    return found


class PriorBatches:
    """Draws what is to be kept, beside the training batches.

    Args:
        data: the training set; :func:`prior_examples` of it are drawn.
        sigmas, device, config, parameterisation, patch_size: as of :class:`.batches.Batches`.
    """

    def __init__(
        self,
        data: TrainingSet,
        sigmas: Tensor,
        device: torch.device,
        config: TrainingConfig,
        parameterisation: Parameterisation = "eps",
        patch_size: int = 2,
    ) -> None:
        self.predicted = is_predicted(data, config)
        examples = prior_examples(data)
        try:
            check_data(TrainingSet(examples, data.empty))
        except ValueError as why:
            raise ValueError(f"Class pictures: {why}") from why
        dropout = max(config.caption_dropout, EMPTY_SHARE) if self.predicted else config.caption_dropout
        own = replace(config, seed=derived_seed(config.seed, "prior"), caption_dropout=dropout)

        def batches(some: Sequence[Example]) -> Batches:
            return Batches(TrainingSet(tuple(some), data.empty), sigmas, device, own, parameterisation, patch_size)

        # Those of a training picture's size go with it in one forward pass; it has any where it has none of its size.
        self._by_shape: dict[torch.Size, Batches] = {}
        wanted = {example.latents.shape for example in data.examples}
        for shape in sorted(wanted & {example.latents.shape for example in examples}):
            self._by_shape[shape] = batches([example for example in examples if example.latents.shape == shape])
        self._any = batches(examples) if wanted - set(self._by_shape) else None

    def draw(self, number: int, shape: torch.Size, chance: torch.Generator) -> Batch:
        """What goes with training batch ``number``.

        Args:
            number: of the batch in the run, from 0.
            shape: (C, …) of the training batch's latents.
            chance: a CPU generator of its own.
        """
        batches = self._by_shape.get(shape, self._any)
        assert batches is not None
        return batches.draw(number, chance)
