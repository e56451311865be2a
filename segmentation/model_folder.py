"""A model's folder as Hugging Face's hub has it: what must be in it, and reading it without the network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def model_type(folder: Path, allowed: tuple[str, ...], example: str) -> str:
    """The `model_type` that the folder's config.json names.

    Args:
        allowed: model types that can be used.
        example: where such a folder is to be had, for messages.

    Raises:
        ValueError: it is no folder, lacks files, or holds another kind of model; says what belongs there.
    """
    wanted = (
        f"A folder like {example} on huggingface.co is needed, with config.json, {WEIGHTS[0]} and {PROCESSORS[0]} "
        "(and the tokenizer's files, where the model reads text)."
    )
    if folder.is_file():
        raise ValueError(f"{folder} is a single file of the original code, which cannot be read here. {wanted}")
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}. {wanted}")
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        kind = config["model_type"] if isinstance(config, dict) else None
    except FileNotFoundError:
        raise ValueError(f"{folder} has no config.json. {wanted}") from None
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder / 'config.json'} cannot be read ({error!s:.100}). {wanted}") from error
    if kind not in allowed:
        raise ValueError(f"{folder} holds a model of type {kind!r}; expected {' or '.join(allowed)}. {wanted}")
    for names in (WEIGHTS, PROCESSORS):
        if not any((folder / name).is_file() for name in names):
            raise ValueError(f"{folder} has no {names[0]}. {wanted}")
    return str(kind)


def files_of(folder: Path) -> tuple[Path, ...]:
    """What a loaded model depends on: if one of these changes, it is to be read again."""
    return tuple(sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".txt")))


def read_network(kind: Any, folder: Path, dtype: str) -> Any:
    """`kind` (a transformers model class) from a folder, in a dtype of :data:`DTYPES`, on the CPU.

    Raises:
        ValueError: weights are missing or of other shapes, or the files cannot be read.
    """
    if dtype not in DTYPES:
        raise ValueError(f"the precision {dtype!r} is unknown; expected one of: {', '.join(DTYPES)}")
    from safetensors import SafetensorError

    try:
        # its dtype is set below: versions differ in that argument's name and default
        network, about = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ValueError(f"the model in {folder} cannot be read: {error!s:.500}") from error
    missing = sorted(about["missing_keys"])
    if missing:
        raise ValueError(
            f"{len(missing)} of the model's weights are not in {folder}, e.g. {missing[0]}; the download may be "
            "incomplete, or the folder belongs to another model"
        )
    return network.to(DTYPES[dtype]).eval()


def read_processor(kind: Any, folder: Path) -> Any:
    """`kind` (a transformers processor class) from a folder.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return kind.from_pretrained(folder, local_files_only=True)
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"the processor in {folder} cannot be read: {error!s:.500}. Copy all of the model's .json and .txt files."
        ) from error


def to_pil(picture: Tensor) -> Any:
    """(3, H, W) in [0, 1] -> PIL, 8 bits, which processors of every version take."""
    from PIL import Image

    return Image.fromarray((picture.detach().float() * 255).round().byte().permute(1, 2, 0).cpu().numpy())
