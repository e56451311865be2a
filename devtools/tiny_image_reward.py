"""A folder of ImageReward's files with two small layers of each kind. A formula gives the weights, so that what the
authors' own code made of them can be compared with anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from .tiny_shapes import Shapes, formula

WIDTH, WORDS, LAYERS, LIMIT = 128, 48, 2, 40
HEAD = (WORDS, 1024, 128, 64, 16, 1)
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "cat", "in", "the", "snow", "on", "##s", "red", "-"),
    *("mat", "very", "cafe", "long", ",", ".", "!"),
)
CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": WORDS,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": LIMIT,
    "num_attention_heads": 3,
    "num_hidden_layers": LAYERS,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": len(VOCABULARY) + 2,
    "encoder_width": WORDS,
    "add_cross_attention": True,
}


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The names of the published file, and their shapes here."""
    found = Shapes()
    found.vit("blip.visual_encoder", WIDTH, 16, 197, LAYERS)
    found["blip.text_encoder.embeddings.word_embeddings.weight"] = (len(VOCABULARY) + 2, WORDS)
    found["blip.text_encoder.embeddings.position_embeddings.weight"] = (LIMIT, WORDS)
    for number in range(LAYERS):
        layer = f"blip.text_encoder.encoder.layer.{number}"
        for kind, seen in (("attention", WORDS), ("crossattention", WIDTH)):
            found.linear(f"{layer}.{kind}.self.query", WORDS, WORDS)
            found.linear(f"{layer}.{kind}.self.key", seen, WORDS)
            found.linear(f"{layer}.{kind}.self.value", seen, WORDS)
            found.linear(f"{layer}.{kind}.output.dense", WORDS, WORDS)
            found.norm(f"{layer}.{kind}.output.LayerNorm", WORDS)
        found.linear(f"{layer}.intermediate.dense", WORDS, 64)
        found.linear(f"{layer}.output.dense", 64, WORDS)
        found.norm(f"{layer}.output.LayerNorm", WORDS)
    found.norm("blip.visual_encoder.norm", WIDTH)
    found.norm("blip.text_encoder.embeddings.LayerNorm", WORDS)
    found.linear("blip.vision_proj", WIDTH, 256)
    found.linear("blip.text_proj", WORDS, 256)
    for number, place in enumerate((0, 2, 4, 6, 7)):
        found.linear(f"mlp.layers.{place}", HEAD[number], HEAD[number + 1])
    return found


def published() -> dict[str, Tensor]:
    """The file's tensors."""
    state = {name: formula(name, shape) for name, shape in published_shapes().items()}
    return state | {"blip.text_encoder.embeddings.position_ids": torch.arange(LIMIT)[None]}


def image_reward(folder: Path) -> Path:
    """The folder, as a user has it."""
    folder.mkdir(parents=True)
    torch.save(published(), folder / "ImageReward.pt")
    (folder / "med_config.json").write_text(json.dumps(CONFIG))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder
