"""Feature networks from a folder that the user has, in any of the layouts in which they are published.

===================  ==============================================  =====================================
layout               files                                           read by
===================  ==============================================  =====================================
transformers         config.json (``model_type``), model.safetensors the host's transformers, 4.50 up to 5.x
open_clip            open_clip_config.json, open_clip_model.…        open_clip_torch (optional)
timm                 config.json (``architecture``), model.…         timm (optional)
ImageReward          ImageReward.pt, med_config.json, vocab.txt      the host's transformers, 4.50 up to 5.x
===================  ==============================================  =====================================

A folder that has two layouts is read by the first. Nothing is downloaded, and no code of a folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

AUTO, CLIP, SIGLIP, DINO, DINOV2 = "auto", "CLIP", "SigLIP", "DINO", "DINOv2"
FAMILIES = (AUTO, CLIP, DINO, DINOV2, SIGLIP)
IMAGE_REWARD = "ImageReward"
SUBJECT_METRICS = {CLIP: "clip_i", DINO: "dino", DINOV2: "dinov2"}
PICKLED = ("pytorch_model.bin",)
EXAMPLES = {
    CLIP: "openai/clip-vit-base-patch32",
    SIGLIP: "google/siglip-base-patch16-224",
    DINO: "facebook/dino-vits16",
    DINOV2: "facebook/dinov2-small",
}


class Tower(nn.Module):
    """A network behind one interface. Neither result has length 1."""

    def pictures(self, seen: Tensor) -> Tensor:
        """Preprocessed (B, 3, H, W) -> (B, D)."""
        raise NotImplementedError

    def texts(self, tokens: dict[str, Tensor]) -> Tensor:
        """What its :class:`Tokenizer` gave -> (B, D)."""
        raise NotImplementedError


class Seen(Protocol):
    """How pictures are prepared: a ``preprocess.Preprocess``, or alike."""

    @property
    def description(self) -> str:
        """For tables."""

    def __call__(self, pictures: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> what the network takes."""


@dataclass(frozen=True)
class Tokens:
    """`values`: tensors by name, a row a prompt. `cut`: which prompts were longer than `limit` tokens."""

    values: dict[str, Tensor]
    cut: tuple[bool, ...]
    limit: int


Tokenizer = Callable[[Sequence[str]], Tokens]


@dataclass(frozen=True)
class Backbone:
    """A network that was recognised, and not read yet.

    Attributes:
        name: of its folder.
        family: one of :data:`FAMILIES`, or what else it calls itself.
        preprocess: what it sees of a picture.
        files: what its weights depend on.
        load: reads it, to the CPU, in fp32. Raises ValueError for weights that are wrong or missing.
        tokenizer: reads what turns prompts into tokens; None where the network has no text part.
    """

    name: str
    family: str
    preprocess: Seen
    files: tuple[Path, ...]
    load: Callable[[], Tower]
    tokenizer: Callable[[], Tokenizer] | None = None

    @property
    def description(self) -> str:
        """For a row's `model`: figures of which this differs are not to be pooled."""
        return f"{f'{self.family} {self.name}'.strip()}, {self.preprocess.description}"

    @property
    def subject_metric(self) -> str:
        """The name in ``registry.METRICS`` of its subject score."""
        return SUBJECT_METRICS.get(self.family, "subject_similarity")


def recognise(folder: Path, family: str = AUTO) -> Backbone:
    """The network in a folder, whatever its layout.

    Args:
        family: what the user says it is. A plain ViT, or one of timm's, is DINO or DINOv2 only if its name or its user
            says so, and is then shown pictures as they are.

    Raises:
        ValueError: no folder, files are missing, another family, or a package is; says what to do.
    """
    if family not in FAMILIES:
        raise ValueError(f"the family {family!r} is unknown; expected one of: {', '.join(FAMILIES)}")
    if not folder.is_dir():
        what = "is a single file" if folder.is_file() else "is not there"
        raise ValueError(f"{folder} {what}; {wanted(family)}")
    from . import image_reward_files

    if image_reward_files.here(folder):
        return image_reward_files.image_reward_backbone(folder, family)
    config = _config(folder / "config.json")
    if "model_type" in config and _weights(folder, ("model.safetensors", "model.safetensors.index.json", *PICKLED)):
        from .backbone_transformers import transformers_backbone

        return transformers_backbone(folder, config, family)
    if (folder / "open_clip_config.json").is_file():
        from .backbone_open_clip import open_clip_backbone

        return open_clip_backbone(folder, _config(folder / "open_clip_config.json"), family)
    if "architecture" in config:
        from .backbone_timm import timm_backbone

        return timm_backbone(folder, config, family)
    if "model_type" in config:
        raise ValueError(f"{folder} has no model.safetensors; {wanted(family)}")
    raise ValueError(f"{folder} has no config.json that names a model; {wanted(family)}")


def wanted(family: str) -> str:
    """What belongs into a folder, for messages."""
    examples = EXAMPLES.get(family, f"{EXAMPLES[CLIP]} or {EXAMPLES[DINOV2]}")
    return (
        f"put a whole folder there, as {examples} on huggingface.co: config.json and model.safetensors, for prompts "
        "also the tokenizer's files (open_clip's and timm's layouts will do, too)"
    )


def weights_file(folder: Path, names: Sequence[str], family: str) -> Path:
    """The first of these files that is there.

    Raises:
        ValueError: none is.
    """
    found = _weights(folder, names)
    if found is None:
        raise ValueError(f"{folder} has no {names[0]}; {wanted(family)}")
    return found


def check_family(found: str, asked: str, folder: Path, may_be: Sequence[str] = ()) -> str:
    """What the folder's family is to be called.

    Args:
        may_be: families that it can also be, if the user says so.

    Raises:
        ValueError: the user asked for another one.
    """
    if asked in (AUTO, found):
        return found
    if asked in may_be:
        return asked
    raise ValueError(f"{folder} holds {found}, not {asked}: choose another folder, or set family to auto")


def read_pickle(path: Path) -> dict[str, Any]:
    """Tensors of a file that torch.save wrote; nothing in it is run.

    Raises:
        ValueError: it holds anything else.
    """
    import pickle

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as why:
        raise ValueError(f"{path} cannot be read as tensors ({str(why)[:120]}); take model.safetensors") from why
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds more than a network's tensors; take model.safetensors")
    return state


def _weights(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as why:
        raise ValueError(f"{path} cannot be read ({str(why)[:100]}); download it again") from why
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no configuration of a model: expected an object with names and values")
    return config
