"""Tiny random feature networks, written as folders in the layouts in which real ones are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

SIDE, PATCH, CONTEXT, WIDTH = 32, 8, 20, 12
_LAYERS: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def clip(folder: Path, **vision: Any) -> Path:
    """transformers' CLIP: letters are its words, 20 tokens, 12 numbers. `vision`: other settings of its image half."""
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    text = {
        **_LAYERS,
        "vocab_size": len(words),
        "max_position_embeddings": CONTEXT,
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
        "pad_token_id": len(words) - 1,
    }
    seen = {**_LAYERS, "image_size": SIDE, "patch_size": PATCH, **vision}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(text_config=text, vision_config=seen, projection_dim=WIDTH)).eval().save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    """transformers' SigLIP, without a tokenizer."""
    from transformers import SiglipConfig, SiglipModel

    text = {**_LAYERS, "vocab_size": 60, "max_position_embeddings": CONTEXT}
    torch.manual_seed(1)
    model = SiglipModel(
        SiglipConfig(text_config=text, vision_config={**_LAYERS, "image_size": SIDE, "patch_size": PATCH})
    )
    model.eval().save_pretrained(folder)
    return folder


def dino(folder: Path) -> Path:
    """transformers' ViT, with the pooling layer that DINO does not have."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(2)
    ViTModel(ViTConfig(**_LAYERS, image_size=SIDE, patch_size=PATCH)).eval().save_pretrained(folder)
    return folder


def dinov2(folder: Path, registers: bool = False) -> Path:
    """transformers' DINOv2 with patches of 14, with or without registers."""
    import transformers

    name = "Dinov2WithRegisters" if registers else "Dinov2"
    settings = {key: value for key, value in _LAYERS.items() if key != "intermediate_size"}
    config = getattr(transformers, f"{name}Config")(**settings, mlp_ratio=1, image_size=28, patch_size=14)
    torch.manual_seed(3)
    getattr(transformers, f"{name}Model")(config).eval().save_pretrained(folder)
    return folder


def open_clip(folder: Path) -> Path:
    """open_clip's CLIP, with the vocabulary that its package brings."""
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": SIDE, "layers": 2, "width": 16, "head_width": 8, "patch_size": PATCH},
        "text_cfg": {"context_length": CONTEXT, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    torch.manual_seed(4)
    network = CLIP(**config).eval()
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "open_clip_model.safetensors")
    prepared = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": prepared}))
    return folder


def timm(folder: Path, architecture: str = "vit_tiny_patch16_224", tag: str = "") -> Path:
    """A timm network of 16 numbers, with its classifier, as timm's own folders have it."""
    from safetensors.torch import save_file
    from timm import create_model

    folder.mkdir(parents=True)
    arguments = {"embed_dim": 16, "depth": 2, "num_heads": 2, "img_size": SIDE, "patch_size": PATCH}
    torch.manual_seed(5)
    network = create_model(architecture, num_classes=3, **arguments)
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, folder / "model.safetensors")
    prepared = {"tag": tag, "input_size": [3, SIDE, SIDE], "crop_pct": 0.9, "interpolation": "bicubic"}
    prepared |= {"mean": [0.5] * 3, "std": [0.5] * 3, "classifier": "head"}
    config = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": prepared}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
