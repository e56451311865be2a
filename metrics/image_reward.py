"""ImageReward: how much people would like a picture for its prompt, about −2 to 2; higher is better.

Xu et al. 2023 (arXiv 2304.05977; code and weights Apache-2.0): BLIP's ViT-L sees the picture, BERT reads the prompt
with cross-attention to what the ViT saw, a linear head judges BERT's first token. It was trained on people's rankings
of pictures that diffusion models drew for prompts; over such pictures its mean is 0, its deviation 1. It judges how a
picture looks and whether it shows what the prompt says; it does not know your subject. The files are the user's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .backbones import Backbone, Tokenizer, Tower
from .embed import Done
from .features import check_pictures
from .preprocess import check_size

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the head's raw scores over the authors' pictures; from their release."""
TOKENS = 35
"""Of a prompt that are read, start and end included."""
NO_DIRECTION = (
    "ImageReward judges a picture together with its prompt and gives neither of them an embedding: wire it to Score "
    "Prompt or to prompt_model of Evaluate; here a CLIP, DINO or DINOv2 is needed"
)


class RewardNetwork(Tower):
    """Pictures and their prompts -> rewards.

    Args:
        vision: transformers' BlipVisionModel.
        text: transformers' BlipTextModel with cross-attention.
        head: (B, D) -> (B,).
    """

    def __init__(self, vision: Any, text: Any, head: nn.Module) -> None:
        super().__init__()
        self.vision, self.text, self.head = vision, text, head

    def rewards(self, seen: Tensor, tokens: dict[str, Tensor]) -> Tensor:
        """Preprocessed (B, 3, H, W), and tokens with a row a picture -> (B,)."""
        states = self.vision(pixel_values=seen).last_hidden_state
        read = self.text(**tokens, encoder_hidden_states=states).last_hidden_state
        return standardised(self.head(read[:, 0]))  # [CLS], as the authors' code: not BLIP's [ENC]

    def pictures(self, seen: Tensor) -> Tensor:
        """Raises ValueError: there is no embedding."""
        raise ValueError(NO_DIRECTION)

    def texts(self, tokens: dict[str, Tensor]) -> Tensor:
        """Raises ValueError: there is no embedding."""
        raise ValueError(NO_DIRECTION)


def standardised(raw: Tensor) -> Tensor:
    """(r − .16717) / 1.0333: mean 0 and deviation 1 over the authors' pictures."""
    return (raw - MEAN) / STD


@dataclass(frozen=True)
class ImageReward:
    """Pictures and prompts -> rewards, in batches.

    Attributes:
        backbone: of ``image_reward_files.image_reward_backbone``.
        loaded: gives the network on its device; asked once a call.
        batch: pictures that go through it at once.
    """

    backbone: Backbone
    loaded: Callable[[], RewardNetwork]
    batch: int = 8

    @torch.no_grad()
    def __call__(self, pictures: Tensor | Sequence[Tensor], prompts: Sequence[str], done: Done | None = None) -> Tensor:
        """Pictures and a prompt each, or one for all -> (B,) rewards, float32 on the CPU.

        Args:
            pictures: (B, 3, H, W), or (3, H, W) each of any sizes, in [0, 1].
            done: called after each batch with the number of its pictures; may raise to cancel.

        Raises:
            ValueError: no pictures, or one that is none (NaN, another range, below 8 pixels); numbers of pictures and
                prompts that do not fit; an empty prompt; a reward that is no number.
        """
        if len(pictures) == 0:
            raise ValueError("there are no pictures to judge; at least one is needed")
        if len(prompts) not in (1, len(pictures)):
            raise ValueError(
                f"there are {len(pictures)} pictures and {len(prompts)} prompts; expected a prompt for each picture, "
                "in their order, or one for all"
            )
        for picture in pictures:
            check_pictures(picture[None])
            check_size(picture)
        check_prompts(prompts)
        own = list(prompts) * (len(pictures) if len(prompts) == 1 else 1)
        network = self.loaded()
        device = next(network.parameters()).device
        rows = []
        for first in range(0, len(own), self.batch):
            part = [picture.to(device, torch.float32)[None] for picture in pictures[first : first + self.batch]]
            seen = torch.cat([self.backbone.preprocess(picture) for picture in part])
            tokens = self.tokenizer(own[first : first + self.batch]).values
            values = {name: value.to(device) for name, value in tokens.items()}
            rows.append(network.rewards(seen, values).float().cpu())
            if done:
                done(len(part))
        rewards = torch.cat(rows)
        if not rewards.isfinite().all():
            raise ValueError(
                f"{self.backbone.description} gives a reward that is no number: its file may be damaged, download it "
                "again"
            )
        return rewards

    def cut(self, prompts: Sequence[str]) -> tuple[bool, ...]:
        """Which prompts are longer than :data:`TOKENS`. Raises ValueError: there are none, or one is empty."""
        check_prompts(prompts)
        return self.tokenizer(prompts).cut

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Read when it is first needed. Raises ValueError for a vocabulary that is another model's."""
        if self.backbone.tokenizer is None:
            raise ValueError(f"{self.backbone.description} is not ImageReward: it reads no prompts")
        return self.backbone.tokenizer()


def check_prompts(prompts: Sequence[str]) -> None:
    """Raises ValueError unless there is at least one prompt, and none is empty."""
    if not prompts:
        raise ValueError("there are no prompts; at least one is needed")
    empty = next((number for number, prompt in enumerate(prompts, 1) if not prompt.strip()), None)
    if empty is not None:
        raise ValueError(f"prompt {empty} is empty: what should the picture show?")


def image_reward(pictures: Tensor | Sequence[Tensor], prompts: Sequence[str], judge: ImageReward) -> float:
    """Mean reward of the pictures, each with its own prompt or with the one that there is."""
    return float(judge(pictures, prompts).mean())
