"""ImageReward in the host's hands: read once a server run, rewards kept by picture and prompt."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from torch import Tensor

from ...metrics.backbones import Backbone
from ...metrics.image_reward import NO_DIRECTION, ImageReward
from .metric_model import BATCH, MetricModel, counter, picture_hash, remembered

_MOST = 100_000
_known: OrderedDict[tuple[Any, ...], float] = OrderedDict()


class RewardModel(MetricModel):
    """A METRIC_MODEL that judges a picture together with its prompt and gives neither a direction."""

    def __init__(self, backbone: Backbone, loaded: Callable[[], Any]) -> None:
        super().__init__(backbone, loaded)
        self._judge = ImageReward(backbone, loaded, BATCH)

    def features(self, pictures: Tensor | Sequence[Tensor], bar: Any = None) -> Tensor:
        """Raises ValueError: there are none."""
        raise ValueError(NO_DIRECTION)

    def cut_text_features(self, prompts: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
        """Raises ValueError: there are none."""
        raise ValueError(NO_DIRECTION)

    def notes(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """A note a prompt: empty, or that it is longer than what is read. The weights are not needed for it.

        Raises:
            ValueError: there are no prompts, one is empty, or the vocabulary is another model's.
        """
        limit = self._judge.tokenizer(["a"]).limit
        return tuple(f"prompt cut to {limit} tokens" if one else "" for one in self._judge.cut(prompts))

    def rewards(self, pictures: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Pictures (3, H, W) in [0, 1] and a prompt each -> (B,). What was judged before costs nothing.

        Looks for a cancel before each batch.

        Raises:
            ValueError: pictures or prompts that cannot be judged.
        """
        comfy.model_management.throw_exception_if_processing_interrupted()

        def judged(places: list[int]) -> list[float]:
            if not places:
                return []
            chosen, asked = [pictures[place] for place in places], [prompts[place] for place in places]
            rewards: list[float] = self._judge(chosen, asked, counter(comfy.utils.ProgressBar(len(places)))).tolist()
            return rewards

        keys = [(*self._key, picture_hash(picture), prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
        return torch.tensor(remembered(_known, _MOST, keys, judged))
