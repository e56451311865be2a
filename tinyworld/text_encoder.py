"""The text encoder of the small models: token rows and one transformer layer of CLIP-L (Radford et al. 2021).

The layer lets the words of a caption meet, so that what ends the caption knows the subject in that style. It is the
first of CLIP-L's twelve; the output projections of the others are zero and change nothing.

A caption is START, its words, and END up to 77 tokens. All ENDs have one row and no position, so the k-th END differs
from the others only in how many ENDs it attends to: log k on one key stands for k of them, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .packing import pack, unpack
from .text import END, HIDDEN, LENGTH, START, WIDTH, clip_weights, seeded_rows

HEADS = 12
NEVER = float("-inf")


class TextLayer(nn.Module):
    """One layer of CLIP's text encoder, under CLIP's names; it begins as the identity."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.self_attn = nn.ModuleDict(
            {name: nn.Linear(WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        )
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, HIDDEN), "fc2": nn.Linear(HIDDEN, WIDTH)})
        for name, layer in [*self.self_attn.items(), *self.mlp.items()]:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.0 if name in ("out_proj", "fc2") else WIDTH**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, asking: Tensor, told: Tensor, bias: Tensor) -> Tensor:
        """`asking` (B, q, 768) is encoded and sees `told` (B, k, 768); `bias` (B, q, k) is added to the logits."""

        def heads(states: Tensor) -> Tensor:
            return states.view(*states.shape[:-1], HEADS, -1).transpose(1, 2)

        known = self.layer_norm1(told)
        query, key, value = (
            heads(self.self_attn[name](states))
            for name, states in (("q_proj", self.layer_norm1(asking)), ("k_proj", known), ("v_proj", known))
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None].to(query.dtype))
        states = asking + self.self_attn["out_proj"](mixed.transpose(1, 2).flatten(2))
        inner = self.mlp["fc1"](self.layer_norm2(states))
        out: Tensor = states + self.mlp["fc2"](inner * torch.sigmoid(1.702 * inner))  # OpenAI's quick GELU
        return out


@dataclass(frozen=True)
class Encoded:
    """Captions, encoded.

    Attributes:
        states: (B, n, 768) before the last LayerNorm: START, the words, ENDs.
        bias: (B, 1, 1, n) for the logits of attention to them: -∞ where a caption has no such entry, log m where one
            stands for m tokens.
        first_end: where the first END is; what lies before are START and words.
    """

    states: Tensor
    bias: Tensor
    first_end: int

    def context(self) -> Tensor:
        """SD1.5's context (B, n, 768): the last LayerNorm's output. SD3 takes `states`."""
        return functional.layer_norm(self.states, (WIDTH,))

    def pooled(self) -> Tensor:
        """SD3's pooled vector (B, 768), by the last layer of `text.clip_weights(pooling=True)`.

        There the first END attends to START, the words and itself alike: LayerNorm(itself + mean of LayerNorms).
        """
        end = self.states[:, self.first_end]
        there = (self.bias[:, 0, 0, : self.first_end + 1] > NEVER).to(end.dtype)[..., None]
        normed = functional.layer_norm(self.states[:, : self.first_end + 1], (WIDTH,))
        return functional.layer_norm(end + (normed * there).sum(1) / there.sum(1), (WIDTH,))


class TextEncoder(nn.Module):
    """Rows of the words that captions use, and the layer; row i belongs to token `ids[i]`."""

    def __init__(self, ids: Sequence[int], seed: int = 0) -> None:
        super().__init__()
        self.ids = sorted(set(ids) | {START, END})
        self.row_of = {token: row for row, token in enumerate(self.ids)}
        self.rows = nn.Parameter(seeded_rows(seed)[self.ids])
        self.layer = TextLayer(seed)

    def forward(
        self, tokens: Sequence[Sequence[int]], ends: int = 0, rng: np.random.Generator | None = None
    ) -> Encoded:
        """Captions' tokens, without START and END -> all entries.

        Args:
            tokens: B captions.
            ends: 0: all ENDs, as the host computes. Otherwise so many (at least 2): the first, and one of each equal
                share of the others with the logarithm of the share's size as bias, which is what training can afford.
            rng: picks within the shares; without it, their middles.
        """
        count, longest = len(tokens), max(map(len, tokens))
        rows = torch.full((count, longest + 1), self.row_of[END])
        words = torch.full((count, longest + 1), NEVER)  # bias of START and the words
        for i, caption in enumerate(tokens):
            rows[i, : len(caption) + 1] = torch.tensor([self.row_of[token] for token in (START, *caption)])
            words[i, : len(caption) + 1] = 0
        total = torch.tensor([LENGTH - 1 - len(caption) for caption in tokens])[:, None]  # of ENDs
        if ends:
            others = ends - 1
            within = torch.full((count, others), 0.5)
            if rng is not None:
                within = torch.from_numpy(rng.random((count, others), np.float32))
            share = (total - 1) / others
            place = torch.cat([torch.ones(count, 1), ((torch.arange(others) + within) * share).floor() + 2], 1)
            weight = torch.cat([torch.zeros(count, 1), share.log().expand(-1, others)], 1)
        else:
            place = torch.arange(1, int(total.max()) + 1).expand(count, -1)
            weight = torch.where(place <= total, 0.0, NEVER)
        device = self.rows.device
        said, end = self.rows[rows.to(device)], self.rows[self.row_of[END]]
        bias = torch.full((count, longest + 1 + place.shape[1], longest + 2), NEVER)
        bias[:, : longest + 1, : longest + 1] = torch.full((longest + 1, longest + 1), NEVER).triu(1)  # causal
        bias[:, longest + 1 :, : longest + 1] = words[:, None]
        bias[:, longest + 1 :, longest + 1] = place.log()
        asking = torch.cat([said, end.expand(*place.shape, -1)], 1)
        states = self.layer(asking, torch.cat([said, end.expand(count, 1, -1)], 1), bias.to(device))
        return Encoded(states, torch.cat([words, weight], 1).to(device)[:, None, None], longest + 1)


def encoder_tensors(encoder: TextEncoder) -> dict[str, Tensor]:
    """What ships: the layer in int8, the rows in fp16, and their token ids."""
    shipped = pack({f"layer.{name}": t.detach().cpu() for name, t in encoder.layer.state_dict().items()})
    shipped["token_ids"] = torch.tensor(encoder.ids, dtype=torch.int32)
    shipped["token_rows"] = encoder.rows.detach().to("cpu", torch.float16)
    return shipped


def load_encoder(shipped: Mapping[str, Tensor]) -> TextEncoder:
    """Inverse of `encoder_tensors`, in fp32 and frozen."""
    rest = dict(shipped)
    ids, rows = rest.pop("token_ids"), rest.pop("token_rows")
    encoder = TextEncoder(ids.tolist())
    layer = {name.removeprefix("layer."): t.float() for name, t in unpack(rest).items()}
    encoder.layer.load_state_dict(layer)
    encoder.rows.data = rows.float()
    return encoder.requires_grad_(False)


def checkpoint_text(
    encoder: TextEncoder, dtype: torch.dtype = torch.float16, *, pooling: bool = False
) -> dict[str, Tensor]:
    """The whole of CLIP-L as a checkpoint has it, see `text.clip_weights`, with the trained layer as its first."""
    weights = clip_weights(torch.tensor(encoder.ids), encoder.rows.detach(), dtype=dtype, pooling=pooling)
    for name, t in encoder.layer.state_dict().items():
        weights[f"text_model.encoder.layers.0.{name}"] = t.to("cpu", dtype)
    return weights
