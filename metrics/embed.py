"""Pictures and prompts through a backbone, in batches: unit rows, whose dot products are cosines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from .backbones import Backbone, Tokenizer, Tower
from .features import check_pictures
from .preprocess import same_sizes

Done = Callable[[int], None]
"""Called after each batch with the number of its pictures or prompts; may raise to cancel."""


@dataclass(frozen=True)
class Embedder:
    """A ``features.Features`` of any backbone.

    Attributes:
        loaded: gives the network on its device; asked once a call.
        batch: pictures that go through it at once.
    """

    backbone: Backbone
    loaded: Callable[[], Tower]
    batch: int = 16

    @torch.no_grad()
    def __call__(self, pictures: Tensor | Sequence[Tensor], done: Done | None = None) -> Tensor:
        """(B, 3, H, W), or pictures (3, H, W) of any sizes, in [0, 1] -> (B, D), float32 on the CPU, unit rows.

        Raises:
            ValueError: no pictures; one of another shape, dtype or range, or below 8 pixels; an embedding of length 0.
        """
        if len(pictures) == 0:
            raise ValueError("there are no pictures to embed; at least one is needed")
        places = {(): list(range(len(pictures)))} if isinstance(pictures, Tensor) else same_sizes(pictures)
        for some in places.values():
            check_pictures(pictures if isinstance(pictures, Tensor) else pictures[some[0]][None])
        network = self.loaded()
        device = next(network.parameters()).device
        order = [place for some in places.values() for place in some]
        rows = []
        for first in range(0, len(order), self.batch):
            part = [pictures[place] for place in order[first : first + self.batch]]
            seen = torch.cat([self._seen([part[i] for i in some], device) for some in same_sizes(part).values()])
            found = network.pictures(seen).float().cpu()
            rows.append(_unit(found, "picture"))
            if done:
                done(len(part))
        back = torch.empty(len(order), dtype=torch.long)
        back[torch.tensor(order)] = torch.arange(len(order))
        return torch.cat(rows)[back]

    def _seen(self, pictures: Sequence[Tensor], device: torch.device) -> Tensor:
        stacked = torch.stack(list(pictures)).to(device, torch.float32)
        check_pictures(stacked)
        return self.backbone.preprocess(stacked)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Reads it when it is first needed.

        Raises:
            ValueError: the network has no text part, or its tokenizer's files are missing.
        """
        if self.backbone.tokenizer is None:
            raise ValueError(
                f"{self.backbone.description} knows no words; prompts need a CLIP, e.g. openai/clip-vit-base-patch32"
            )
        return self.backbone.tokenizer()

    @torch.no_grad()
    def texts(self, prompts: Sequence[str], done: Done | None = None) -> tuple[Tensor, tuple[bool, ...]]:
        """Prompts -> (B, D), float32 on the CPU, unit rows; and which were too long and cut.

        Raises:
            ValueError: there are none, one is empty, or the network has no text part.
        """
        if not prompts:
            raise ValueError("there are no prompts; at least one is needed")
        empty = [number for number, prompt in enumerate(prompts, 1) if not prompt.strip()]
        if empty:
            raise ValueError(f"prompt {empty[0]} is empty: what should the picture show?")
        tokenize, network = self.tokenizer, self.loaded()
        device = next(network.parameters()).device
        rows: list[Tensor] = []
        cut: list[bool] = []
        for first in range(0, len(prompts), self.batch):
            tokens = tokenize(prompts[first : first + self.batch])
            values = {name: value.to(device) for name, value in tokens.values.items()}
            rows.append(_unit(network.texts(values).float().cpu(), "prompt"))
            cut += tokens.cut
            if done:
                done(len(tokens.cut))
        return torch.cat(rows), tuple(cut)

    def limit(self) -> int:
        """Tokens of a prompt that are read, start and end included."""
        return self.tokenizer(["a"]).limit


def _unit(rows: Tensor, what: str) -> Tensor:
    lengths = rows.norm(dim=1)
    if not (lengths > 0).all() or not lengths.isfinite().all():
        raise ValueError(f"the network gives a {what} an embedding without direction (zero, NaN or infinite)")
    return functional.normalize(rows, dim=1)


def embedder(backbone: Backbone, batch: int = 16, device: torch.device | str = "cpu") -> Embedder:
    """The backbone read at once, for use without a host.

    Raises:
        ValueError: its weights are wrong or missing.
    """
    network = backbone.load().requires_grad_(False).to(device)
    return Embedder(backbone, lambda: network, batch)
