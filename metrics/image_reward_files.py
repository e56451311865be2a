"""ImageReward's published file into transformers' BLIP, 4.50 up to 5.x.

The folder: ``ImageReward.pt`` (or a safetensors file with the same names), ``med_config.json`` of the same repository,
and BERT's ``vocab.txt``. The authors' package is not needed. BERT's sizes are those of the configuration, or, where it
is not there, the published ones; the vision transformer's are read from its tensors.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from . import backbones, preprocess, wordpiece
from .aesthetic import AestheticHead
from .backbones import IMAGE_REWARD, Backbone
from .image_reward import TOKENS, RewardNetwork

log = logging.getLogger(__name__)

FILES = ("ImageReward.pt", "ImageReward.safetensors")
CONFIG = "med_config.json"
PUBLISHED: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "vocab_size": 30524,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
"""What of med_config.json matters."""
SIDE = 224
WANTED = (
    f"put {FILES[0]} and {CONFIG} of THUDM/ImageReward on huggingface.co into one folder, with {wordpiece.FILE} of "
    "google-bert/bert-base-uncased"
)
_HEAD_WIDTH = 64  # of a head of the vision transformer, base and large
_UNUSED = re.compile(r"blip\.((vision|text)_proj\.(weight|bias)|text_encoder\.embeddings\.position_ids)")
"""BLIP's projections for another task, and 0, 1, 2 …"""
_VISION = (
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("patch_embed.proj.", "embeddings.patch_embedding."),
    ("blocks.", "encoder.layers."),
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.qkv.", ".self_attn.qkv."),
    (".attn.proj.", ".self_attn.projection."),
)


def here(folder: Path) -> Path | None:
    """ImageReward's file in this folder, if there is one."""
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def image_reward_backbone(folder: Path, asked: str) -> Backbone:
    """ImageReward, not read yet.

    Raises:
        ValueError: files are missing, or the user asked for another family.
    """
    family = backbones.check_family(IMAGE_REWARD, asked, folder)
    weights, config, words = here(folder), folder / CONFIG, folder / wordpiece.FILE
    if weights is None:
        raise ValueError(f"{folder} has no {FILES[0]}; {WANTED}")
    if not words.is_file():
        raise ValueError(f"{folder} has no {words.name}, which prompts are read with: {wordpiece.WANTED}")
    settings = _settings(config)
    return Backbone(
        "" if folder.name == family else folder.name,
        family,
        preprocess.clip(SIDE),
        tuple(path for path in (weights, config, words) if path.is_file()),
        lambda: _network(weights, settings),
        lambda: wordpiece.wordpiece(words, settings["vocab_size"], TOKENS),
    )


def renamed(name: str) -> str | None:
    """A published name -> ours, or None of a tensor that rewards do not need; unknown ones stay as they are."""
    if _UNUSED.fullmatch(name):
        return None
    if name.startswith("blip.visual_encoder."):
        name = name.removeprefix("blip.visual_encoder.")
        for old, new in _VISION:
            name = name.replace(old, new)
        return "vision." + re.sub(r"^norm\.", "post_layernorm.", name)
    for old, new in (("blip.text_encoder.", "text."), ("mlp.", "head.")):
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return PUBLISHED
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as why:
        raise ValueError(f"{path} cannot be read ({str(why)[:100]}); download it again") from why
    wrong = [
        name
        for name, usual in PUBLISHED.items()
        if not isinstance(found, dict) or not isinstance(found.get(name), type(usual))
    ]
    if wrong:
        raise ValueError(f"{path} does not say BERT's {wrong[0]}; take {path.name} of THUDM/ImageReward")
    return {name: found[name] for name in PUBLISHED}


def _network(path: Path, settings: Mapping[str, Any]) -> RewardNetwork:
    """Raises ValueError: the file is not ImageReward, or not whole; names what is missing."""
    try:
        state = load_file(path) if path.suffix == ".safetensors" else backbones.read_pickle(path)
    except (SafetensorError, OSError) as why:
        raise ValueError(f"{path} cannot be read ({str(why)[:120]}); {WANTED}") from why
    ours = {new: tensor.float() for name, tensor in state.items() if (new := renamed(name)) is not None}
    published = {new: name for name in state if (new := renamed(name)) is not None}
    network = _empty(path, ours, settings)
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    missing = sorted(set(wanted) - set(ours))
    if missing:
        raise ValueError(
            f"{path} lacks {len(missing)} of ImageReward's {len(wanted)} tensors, e.g. {', '.join(missing[:3])} (in "
            f"transformers' names): the download is incomplete, or the file is of another model; {WANTED}"
        )
    wrong = next((name for name in wanted if ours[name].shape != wanted[name]), None)
    if wrong is not None:
        raise ValueError(
            f"{path}: {published[wrong]} is {tuple(ours[wrong].shape)}, expected {tuple(wanted[wrong])}: the file and "
            f"{CONFIG} are of different models; {WANTED}"
        )
    unknown = sorted(published[name] for name in set(ours) - set(wanted))
    if unknown:
        log.warning("%s: %d tensors are not ImageReward's and not used, e.g. %s", path, len(unknown), unknown[0])
    network.load_state_dict({name: ours[name] for name in wanted}, assign=True)
    return network.eval()


def _empty(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> RewardNetwork:
    """The network without weights, so that they are in memory once."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    patches, places = state.get("vision.embeddings.patch_embedding.weight"), "vision.embeddings.position_embedding"
    if patches is None or patches.ndim != 4 or places not in state:
        raise ValueError(f"{path} has no vision transformer (blip.visual_encoder): it is another model; {WANTED}")
    width, patch = patches.shape[0], patches.shape[2]
    side = patch * math.isqrt(max(0, state[places].shape[1] - 1))
    if width % _HEAD_WIDTH or side != SIDE:
        raise ValueError(f"{path} sees {side} pixels in {width} numbers, ImageReward {SIDE} in 1024; {WANTED}")
    layers = {name.split(".")[3] for name in state if name.startswith("vision.encoder.layers.")}
    vision = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=len(layers),
        num_attention_heads=width // _HEAD_WIDTH,
        image_size=side,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )
    other = {"bos_token_id": settings["vocab_size"] - 2, "sep_token_id": None}  # of generated text
    text = BlipTextConfig(**settings, **other, encoder_hidden_size=width, is_decoder=True)  # so: cross-attention
    with torch.device("meta"):
        network = RewardNetwork(
            BlipVisionModel(vision),
            BlipTextModel(text, add_pooling_layer=False),
            AestheticHead(settings["hidden_size"]),
        )
    places_of_words = torch.arange(settings["max_position_embeddings"])
    network.text.embeddings.position_ids = places_of_words.expand(1, -1)
    return network
