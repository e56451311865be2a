"""A folder of ImageReward's files with two small layers of each kind. A formula gives the weights, so that what the
authors' own code made of them can be compared with anywhere."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

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
    found: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, WIDTH),
        "blip.visual_encoder.pos_embed": (1, 197, WIDTH),
        "blip.visual_encoder.patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "blip.visual_encoder.patch_embed.proj.bias": (WIDTH,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (CONFIG["vocab_size"], WORDS),  # type: ignore[dict-item]
        "blip.text_encoder.embeddings.position_embeddings.weight": (LIMIT, WORDS),
    }

    def linear(name: str, inner: int, outer: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outer, inner), (outer,)

    def norm(name: str, width: int) -> None:
        found[f"{name}.weight"] = found[f"{name}.bias"] = (width,)

    for number in range(LAYERS):
        block = f"blip.visual_encoder.blocks.{number}"
        norm(f"{block}.norm1", WIDTH)
        norm(f"{block}.norm2", WIDTH)
        linear(f"{block}.attn.qkv", WIDTH, 3 * WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", WIDTH, 4 * WIDTH)
        linear(f"{block}.mlp.fc2", 4 * WIDTH, WIDTH)
        layer = f"blip.text_encoder.encoder.layer.{number}"
        for kind, seen in (("attention", WORDS), ("crossattention", WIDTH)):
            linear(f"{layer}.{kind}.self.query", WORDS, WORDS)
            linear(f"{layer}.{kind}.self.key", seen, WORDS)
            linear(f"{layer}.{kind}.self.value", seen, WORDS)
            linear(f"{layer}.{kind}.output.dense", WORDS, WORDS)
            norm(f"{layer}.{kind}.output.LayerNorm", WORDS)
        linear(f"{layer}.intermediate.dense", WORDS, 64)
        linear(f"{layer}.output.dense", 64, WORDS)
        norm(f"{layer}.output.LayerNorm", WORDS)
    norm("blip.visual_encoder.norm", WIDTH)
    norm("blip.text_encoder.embeddings.LayerNorm", WORDS)
    linear("blip.vision_proj", WIDTH, 256)
    linear("blip.text_proj", WORDS, 256)
    for number, place in enumerate((0, 2, 4, 6, 7)):
        linear(f"mlp.layers.{place}", HEAD[number], HEAD[number + 1])
    return found


def formula(name: str, shape: tuple[int, ...]) -> Tensor:
    """Chance from the name, of a size that lets attention choose and rewards differ; NumPy's frozen generator."""
    values = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if "norm" in name.lower() and name.endswith("weight"):
        values = 1 + 0.2 * values
    elif name.endswith("bias") or "pos_embed" in name or "position" in name:
        values = 0.2 * values
    elif len(shape) > 1 and "embeddings" not in name and "cls_token" not in name:
        values = values * 1.5 / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


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
