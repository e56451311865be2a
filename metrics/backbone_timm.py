"""Any of timm's networks by its folder; needs timm, an optional extra.

DINO and DINOv2 see pictures as their authors showed them (256, middle 224), not as timm's crop_pct has it, so that the
figures are those of papers. All others see them as timm says.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from . import backbones, preprocess
from .backbones import DINO, DINOV2, Backbone, Tower

PIP = "pip install timm"
WEIGHTS = ("model.safetensors", *backbones.PICKLED)


class Pooled(Tower):
    """A timm network without its classifier: its own pooling, for DINO the CLS token."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def pictures(self, seen: Tensor) -> Tensor:
        found: Tensor = self.network(seen)
        return found


def timm_backbone(folder: Path, config: dict[str, Any], asked: str) -> Backbone:
    """The network of a folder with this config.json."""
    timm = _timm()
    name = str(config["architecture"])
    if not timm.is_model(name):
        raise ValueError(f"timm {timm.__version__} has no model {name!r} (of {folder}): pip install --upgrade timm")
    prepared = {**timm.get_pretrained_cfg(name).to_dict(), **config.get("pretrained_cfg", {})}
    words = f"{name} {prepared.get('tag', '')} {folder.name}".lower()
    found = DINOV2 if "dinov2" in words else DINO if "dino" in words and "dinov" not in words else f"timm {name}"
    transformer = name.startswith(("vit", "deit"))
    family = backbones.check_family(found, asked, folder, (DINO, DINOV2) if transformer else ())
    weights = backbones.weights_file(folder, WEIGHTS, family)
    side = int(prepared.get("input_size", (3, 224, 224))[-1])
    seen = preprocess.dino(min(side, 224)) if family in (DINO, DINOV2) else _preprocess(prepared, side)
    more = dict(config.get("model_args", {}))
    if seen.crop != side:
        more["dynamic_img_size"] = True
    return Backbone(
        folder.name, family, seen, (folder / "config.json", weights), lambda: _read(name, more, weights, prepared)
    )


def _timm() -> Any:
    try:
        import timm
    except ImportError as why:
        raise ValueError(f"this folder has timm's layout, and the package is not installed: {PIP}") from why
    return timm


def _preprocess(prepared: dict[str, Any], side: int) -> preprocess.Preprocess:
    how = str(prepared.get("interpolation", "bicubic"))
    colours = tuple(tuple(float(v) for v in prepared.get(key, usual)) for key, usual in _COLOURS)
    squash = prepared.get("crop_mode") == "squash"
    resize = side if squash else math.floor(side / float(prepared.get("crop_pct", 1.0)))
    return preprocess.Preprocess(resize, side, colours, how, squash)  # type: ignore[arg-type]


_COLOURS = (("mean", preprocess.IMAGENET[0]), ("std", preprocess.IMAGENET[1]))


def _read(name: str, more: dict[str, Any], weights: Path, prepared: dict[str, Any]) -> Tower:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network = _timm().create_model(name, pretrained=False, num_classes=0, **more)
    except (TypeError, ValueError, RuntimeError, AssertionError) as why:
        raise ValueError(f"timm cannot make {name} with {more} ({str(why)[:200]}); see config.json") from why
    try:
        state = load_file(weights) if weights.suffix == ".safetensors" else backbones.read_pickle(weights)
    except SafetensorError as why:
        raise ValueError(f"{weights} cannot be read ({str(why)[:100]}): the download is incomplete") from why
    heads = prepared.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    try:
        about = network.load_state_dict(
            {key: value for key, value in state.items() if not key.startswith(heads)}, False
        )
    except RuntimeError as why:
        raise ValueError(f"{weights} is not of {name} ({' '.join(str(why).split())[:300]})") from why
    if about.missing_keys or about.unexpected_keys:
        odd = f"lacks {about.missing_keys[0]}" if about.missing_keys else f"has {about.unexpected_keys[0]}"
        raise ValueError(
            f"{weights} is not of {name}: it {odd}; take the folder of timm/{name} on huggingface.co, and its files "
            "together"
        )
    return Pooled(network.float().eval())
