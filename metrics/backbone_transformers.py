"""CLIP, SigLIP, DINO and DINOv2 in transformers' layout, with transformers 4.50 up to 5.x."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from . import backbones, preprocess
from .backbones import CLIP, DINO, DINOV2, SIGLIP, Backbone, Tokenizer, Tokens, Tower

_FAMILIES = {
    "clip": CLIP,
    "clip_vision_model": CLIP,
    "siglip": SIGLIP,
    "dinov2": DINOV2,
    "dinov2_with_registers": DINOV2,
    "vit": "ViT",
}
_CLASSES = {
    "clip": "CLIPModel",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip": "SiglipModel",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "vit": "ViTModel",
}


class TwoTowers(Tower):
    """A model that embeds pictures and texts. transformers 4 gives the embedding, 5 an object around it."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def pictures(self, seen: Tensor) -> Tensor:
        return _pooled(self.network.get_image_features(pixel_values=seen))

    def texts(self, tokens: dict[str, Tensor]) -> Tensor:
        return _pooled(self.network.get_text_features(**tokens))


class Projected(Tower):
    """CLIP's image half."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def pictures(self, seen: Tensor) -> Tensor:
        found: Tensor = self.network(pixel_values=seen).image_embeds
        return found


class ClassToken(Tower):
    """The CLS token behind the last norm. `pooler_output` of a ViT is something else: a layer that DINO has not."""

    def __init__(self, network: Any, interpolate: bool) -> None:
        super().__init__()
        self.network = network
        self.more = {"interpolate_pos_encoding": True} if interpolate else {}

    def pictures(self, seen: Tensor) -> Tensor:
        found: Tensor = self.network(pixel_values=seen, **self.more).last_hidden_state[:, 0]
        return found


def transformers_backbone(folder: Path, config: dict[str, Any], asked: str) -> Backbone:
    """The network of a folder with this config.json."""
    kind = config["model_type"]
    if kind not in _FAMILIES:
        raise ValueError(f"{folder} holds a model of type {kind!r}, which is not known; {backbones.wanted(asked)}")
    family = _FAMILIES[kind]
    if kind == "vit" and "dino" in f"{folder.name} {config.get('_name_or_path', '')}".lower():
        family = DINO
    family = backbones.check_family(family, asked, folder, (DINO,) if kind == "vit" else ())
    names = ("model.safetensors", "model.safetensors.index.json", *backbones.PICKLED)
    weights = backbones.weights_file(folder, names, family)
    vision = config.get("vision_config", config) if kind in ("clip", "siglip") else config
    side = int(vision.get("image_size", 224))
    seen = _preprocess(folder, family, side)

    def load() -> Tower:
        network = _read(_CLASSES[kind], folder, weights, family)
        if kind in ("clip", "siglip"):
            return TwoTowers(network)
        if kind == "clip_vision_model":
            return Projected(network)
        return ClassToken(network, interpolate=kind == "vit" and seen.crop != side)

    files = (folder / "config.json", *sorted(folder.glob("*.safetensors")), weights)
    tokens = (lambda: _tokenizer(folder, config, kind)) if kind in ("clip", "siglip") else None
    return Backbone(folder.name, family, seen, tuple(dict.fromkeys(files)), load, tokens)


def _preprocess(folder: Path, family: str, side: int) -> preprocess.Preprocess:
    if family == CLIP:
        return preprocess.clip(side)
    if family in (DINO, DINOV2):  # DINOv2's image_size is that of its position table, 518
        return preprocess.dino(min(side, 224))
    about = folder / "preprocessor_config.json"
    try:
        resample = json.loads(about.read_text("utf-8")).get("resample", 3) if about.is_file() else 3
    except (OSError, ValueError) as why:
        raise ValueError(f"{about} cannot be read ({str(why)[:100]}); download it again") from why
    how = "bilinear" if resample == 2 else "bicubic"
    return preprocess.Preprocess(side, side, preprocess.HALF, how, squash=True)


def _read(name: str, folder: Path, weights: Path, family: str) -> Any:
    import transformers
    from safetensors import SafetensorError

    kind = getattr(transformers, name, None)
    if kind is None:
        raise ValueError(f"transformers {transformers.__version__} has no {name}: pip install --upgrade transformers")
    more: dict[str, Any] = {"add_pooling_layer": False} if name == "ViTModel" else {}
    source: Path | None = folder
    if weights.suffix == ".bin":
        source, more["state_dict"] = None, backbones.read_pickle(weights)
        more["config"] = kind.config_class.from_pretrained(folder, local_files_only=True)
    else:
        more |= {"use_safetensors": True, "local_files_only": True}
    try:
        network, about = kind.from_pretrained(source, output_loading_info=True, **more)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, SafetensorError) as why:
        raise ValueError(
            f"{weights} cannot be read as {name} ({' '.join(str(why).split())[:300]}); {backbones.wanted(family)}"
        ) from why
    missing = sorted(key for key in about["missing_keys"] if not key.endswith("position_ids"))
    if missing:
        raise ValueError(
            f"{weights} lacks {len(missing)} of {name}'s weights, e.g. {missing[0]}: the download is incomplete, or "
            f"the file is of another model; {backbones.wanted(family)}"
        )
    return network.float().eval()


def _tokenizer(folder: Path, config: dict[str, Any], kind: str) -> Tokenizer:
    import transformers

    try:
        reads = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, ImportError) as why:
        raise ValueError(
            f"the tokenizer in {folder} cannot be read ({' '.join(str(why).split())[:200]}): copy all of the model's "
            ".json and .txt files"
        ) from why
    usual = 77 if kind == "clip" else 64
    limit = int(config.get("text_config", {}).get("max_position_embeddings", usual))

    def tokenize(prompts: Sequence[str]) -> Tokens:
        texts = list(prompts)
        whole = reads(texts)["input_ids"]
        fixed = "longest" if kind == "clip" else "max_length"  # SigLIP was trained with its padding in sight
        found = reads(texts, padding=fixed, truncation=True, max_length=limit, return_tensors="pt")
        names = ("input_ids", "attention_mask") if kind == "clip" else ("input_ids",)
        return Tokens({name: found[name] for name in names}, tuple(len(one) > limit for one in whole), limit)

    return tokenize


def _pooled(found: Any) -> Tensor:
    embedding: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return embedding
