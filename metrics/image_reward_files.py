"""ImageReward's published file into transformers' BLIP, 4.50 up to 5.x.

The folder: ``ImageReward.pt`` (or a safetensors file with the same names), ``med_config.json`` of the same repository,
and BERT's ``vocab.txt``. The authors' package is not needed. BERT's sizes are those of the configuration, or, where it
is not there, the published ones; the vision transformer's are read from its tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import backbones, preprocess, tensors, timm_vit, wordpiece
from .aesthetic import AestheticHead
from .backbones import IMAGE_REWARD, Backbone
from .image_reward import TOKENS, RewardNetwork

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
_UNUSED = re.compile(r"blip\.((vision|text)_proj\.(weight|bias)|text_encoder\.embeddings\.position_ids)")
"""BLIP's projections for another task, and 0, 1, 2 …"""


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
        return "vision." + timm_vit.renamed(name.removeprefix("blip.visual_encoder."))
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
    state = tensors.read_tensors(path, WANTED)
    ours = {new: tensor.float() for name, tensor in state.items() if (new := renamed(name)) is not None}
    network = _empty(path, ours, settings)
    tensors.fill(network, ours, path, IMAGE_REWARD, WANTED)
    return network.eval()


def _empty(path: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> RewardNetwork:
    """The network without weights, so that they are in memory once."""
    from transformers import BlipTextConfig, BlipTextModel

    seen = {name.removeprefix("vision."): tensor for name, tensor in state.items() if name.startswith("vision.")}
    with torch.device("meta"):
        try:
            vision = timm_vit.empty_vit(seen, SIDE)
        except ValueError as why:
            raise ValueError(f"{path} is another model, {why}; {WANTED}") from why
        other = {"bos_token_id": settings["vocab_size"] - 2, "sep_token_id": None}  # of generated text
        more = {"encoder_hidden_size": vision.config.hidden_size, "is_decoder": True}  # so: cross-attention
        text = BlipTextModel(BlipTextConfig(**settings, **other, **more), add_pooling_layer=False)
        network = RewardNetwork(vision, text, AestheticHead(settings["hidden_size"]))
    places_of_words = torch.arange(settings["max_position_embeddings"])
    network.text.embeddings.position_ids = places_of_words.expand(1, -1)
    return network
