"""CLIP-like models in open_clip's layout; needs open_clip_torch, an optional extra."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import backbones, preprocess
from .backbones import CLIP, SIGLIP, Backbone, Tokenizer, Tokens, Tower

PIP = "pip install open_clip_torch"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")


class OpenClip(Tower):
    """open_clip's encoders."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def pictures(self, seen: Tensor) -> Tensor:
        found: Tensor = self.network.encode_image(seen)
        return found

    def texts(self, tokens: dict[str, Tensor]) -> Tensor:
        found: Tensor = self.network.encode_text(tokens["text"])
        return found


def open_clip_backbone(folder: Path, config: dict[str, Any], asked: str) -> Backbone:
    """The network of a folder with this open_clip_config.json."""
    _open_clip()
    about = folder / "open_clip_config.json"
    try:
        model, prepared = config["model_cfg"], config.get("preprocess_cfg", {})
        side = model["vision_cfg"].get("image_size", 224)
        side = int(side if isinstance(side, int) else side[0])
        colours = tuple(tuple(float(v) for v in prepared.get(key, usual)) for key, usual in _COLOURS)
    except (KeyError, TypeError, AttributeError, ValueError) as why:
        raise ValueError(f"{about} names no open_clip model ({why}); download it again") from why
    family = backbones.check_family(SIGLIP if "init_logit_bias" in model else CLIP, asked, folder, (CLIP, SIGLIP))
    how = str(prepared.get("interpolation", "bicubic"))
    seen = preprocess.Preprocess(side, side, colours, how, prepared.get("resize_mode", "shortest") == "squash")  # type: ignore[arg-type]
    weights = backbones.weights_file(folder, WEIGHTS, family)
    return Backbone(
        folder.name, family, seen, (about, weights), lambda: _read(folder, weights, family), lambda: _tokenizer(folder)
    )


_COLOURS = (("mean", preprocess.CLIP[0]), ("std", preprocess.CLIP[1]))


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError as why:
        raise ValueError(f"this folder has open_clip's layout, and the package is not installed: {PIP}") from why
    return open_clip


def _read(folder: Path, weights: Path, family: str) -> Tower:
    try:
        network = _open_clip().create_model(f"local-dir:{folder}", precision="fp32", device="cpu")
    except Exception as why:  # its loader passes on whatever the libraries below raise
        raise ValueError(
            f"{weights} cannot be read by open_clip ({' '.join(str(why).split())[:300]}); {backbones.wanted(family)}"
        ) from why
    return OpenClip(network.eval())


def _tokenizer(folder: Path) -> Tokenizer:
    try:
        reads = _open_clip().get_tokenizer(f"local-dir:{folder}")
    except Exception as why:  # as above
        raise ValueError(f"the tokenizer in {folder} cannot be read ({str(why)[:200]}): copy all of its files") from why
    limit = int(reads.context_length)

    def length(prompt: str) -> int:
        if hasattr(reads, "encode"):
            return len(reads.encode(prompt)) + 2  # start and end
        return len(reads.tokenizer(prompt)["input_ids"])

    def tokenize(prompts: Sequence[str]) -> Tokens:
        ids = torch.as_tensor(reads(list(prompts)))
        return Tokens({"text": ids}, tuple(length(prompt) > limit for prompt in prompts), limit)

    return tokenize
