"""Tokens, and CLIP-L's text encoder as a checkpoint has it, most of which nobody trained.

Shipped are one row a word that captions use, and one layer (see `text_encoder`). The rows of all other words are drawn
from a seed, as a rare word's row would be, and the output projections of the other layers are zero: they pass on what
they get.

SD3 takes the states from before the last layer, without LayerNorm, and the last layer's output at the first END as the
pooled vector. There that layer attends to all words alike and passes them on, so the pooled vector is their mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer

VOCABULARY, WIDTH, LENGTH, LAYERS, HIDDEN = 49408, 768, 77, 12, 3072
START, END = 49406, 49407  # END pads too, as the host does for SD1.5
ROW_STD = 0.3


def seeded_rows(seed: int = 0) -> Tensor:
    """The token table before training: (49408, 768), N(0, 0.3²)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(VOCABULARY, WIDTH, generator=generator) * ROW_STD


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> list[list[int]]:
    """Caption -> token ids without start, end and padding."""
    return [list(ids) for ids in tokenizer(list(captions), add_special_tokens=False)["input_ids"]]


def clip_weights(
    ids: Tensor, rows: Tensor, seed: int = 0, dtype: torch.dtype = torch.float16, pooling: bool = False
) -> dict[str, Tensor]:
    """The whole text encoder as a checkpoint has it (`text_model.…`, 123M parameters), around the trained rows.

    `pooling` makes the last layer the mean over the words, for models that take CLIP's pooled vector.
    """
    table = seeded_rows(seed)
    table[ids.long()] = rows.float()
    generator = torch.Generator().manual_seed(seed + 1)

    def seeded(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=generator) * 0.02).to(dtype)

    weights = {
        "text_model.embeddings.token_embedding.weight": table.to(dtype),
        "text_model.embeddings.position_embedding.weight": torch.zeros(LENGTH, WIDTH, dtype=dtype),
        "text_model.embeddings.position_ids": torch.arange(LENGTH)[None],
        "text_model.final_layer_norm.weight": torch.ones(WIDTH, dtype=dtype),
        "text_model.final_layer_norm.bias": torch.zeros(WIDTH, dtype=dtype),
    }
    for layer in range(LAYERS):
        prefix = f"text_model.encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj"):
            weights[f"{prefix}.self_attn.{name}.weight"] = seeded(WIDTH, WIDTH)
        weights[f"{prefix}.self_attn.out_proj.weight"] = torch.zeros(WIDTH, WIDTH, dtype=dtype)
        weights[f"{prefix}.mlp.fc1.weight"] = seeded(HIDDEN, WIDTH)
        weights[f"{prefix}.mlp.fc2.weight"] = torch.zeros(WIDTH, HIDDEN, dtype=dtype)
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc2"):
            weights[f"{prefix}.{name}.bias"] = torch.zeros(WIDTH, dtype=dtype)
        weights[f"{prefix}.mlp.fc1.bias"] = torch.zeros(HIDDEN, dtype=dtype)
        for norm in ("layer_norm1", "layer_norm2"):
            weights[f"{prefix}.{norm}.weight"] = torch.ones(WIDTH, dtype=dtype)
            weights[f"{prefix}.{norm}.bias"] = torch.zeros(WIDTH, dtype=dtype)
    if pooling:
        last = f"text_model.encoder.layers.{LAYERS - 1}.self_attn"
        for name in ("q_proj", "k_proj"):  # equal logits: END attends to START, the words and itself alike
            weights[f"{last}.{name}.weight"] = torch.zeros(WIDTH, WIDTH, dtype=dtype)
        for name in ("v_proj", "out_proj"):
            weights[f"{last}.{name}.weight"] = torch.eye(WIDTH, dtype=dtype)
    return weights
