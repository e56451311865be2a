"""From a file to a LORA_MODEL, and back: files, keys and metadata together, with nothing overlooked in silence."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence, Sized
from datetime import datetime
from pathlib import Path

import torch
from torch import Tensor

from . import suffixes
from .files import read_lora, write_safetensors
from .keys import Layers, canonicalise, check_fit, rename
from .metadata import complete_metadata, peft_alphas, res_blocks_of
from .model import LoraTensors, metadata_of

logger = logging.getLogger(__name__)

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def load_lora(path: str | os.PathLike[str], layers: Layers | None = None, *, keep_unknown: bool = False) -> LoraTensors:
    """Read a LoRA file of any naming scheme into comfy naming.

    layers: canonical layer -> shape of its weight, of the MODEL it is meant for; None checks names alone.
    keep_unknown: keys that name no layer come along as they are, to be looked at, instead of being refused.
    Raises ValueError saying which layer and why where a key means no layer, a layer is incomplete, or its size is not
    the MODEL's; and whatever ``read_lora`` refuses.
    """
    name = Path(path).name
    tensors, metadata = read_lora(path)
    try:
        check_numbers(tensors)
        alphas = peft_alphas(metadata, tensors)
        found = canonicalise(tensors, layers, res_blocks=res_blocks_of(metadata), alphas=alphas)
        if keep_unknown:
            check_known(tensors, (), len(tensors), layers is not None)
        else:
            check_known(found.tensors, found.unmatched, len(tensors), layers is not None)
        if layers is not None:
            check_fit(found.tensors, layers)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    logger.info("%s: %d tensors, named as %s does", name, len(found.tensors), found.scheme)
    strange = {key: tensors[key] for key in found.unmatched if keep_unknown and key in tensors}
    return LoraTensors(found.tensors | strange, metadata)


def check_known(found: Sized, unmatched: Sequence[str], count: int, known: bool) -> None:
    """Raise ValueError where a key names no layer (alphas do no harm), or nothing is found.

    found: what has a layer. unmatched: keys that name none. count: of all keys. known: whether the MODEL is.
    """
    strange = [key for key in unmatched if (s := suffixes.split(key)) is None or s[1] != suffixes.ALPHA]
    if strange:
        raise ValueError(_unmatched(strange, count, known))
    if not found:
        raise ValueError("it changes no layer at all")


def save_lora(
    path: str | os.PathLike[str],
    lora: Mapping[str, Tensor],
    naming: str = "kohya",
    dtype: str = "fp16",
    date: datetime | None = None,
) -> dict[str, str]:
    """Write a LORA_MODEL as a safetensors file, whole or not at all; returns the metadata written.

    naming: one of keys.SCHEMES. dtype: fp16, bf16 or fp32 (alpha stays fp32). Raises ValueError where the naming has
    no form for a layer, a value is not finite, or is too large for the dtype.
    """
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    if not lora:
        raise ValueError("the LORA_MODEL is empty: there is nothing to save. Was anything trained?")
    metadata = metadata_of(lora)
    renamed = rename(lora, naming, res_blocks_of(metadata))
    tensors = {key: _cast(key, tensor, DTYPES[dtype]) for key, tensor in renamed.items()}
    complete = complete_metadata(tensors, metadata, title=Path(path).stem, naming=naming, date=date)
    write_safetensors(path, tensors, complete)
    return complete


def check_numbers(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first tensor of a LoRA that holds NaN, infinity, nothing, or whole numbers.

    Of a tensor on the meta device only what is known of it counts.
    """
    for key, tensor in tensors.items():
        suffix = (suffixes.split(key) or ("", ""))[1]
        if not tensor.numel():
            raise ValueError(f"the tensor {key} is empty ({tuple(tensor.shape)}); export the file again")
        if not tensor.is_floating_point():
            if suffix not in ("", suffixes.ALPHA, "reshape_weight"):
                raise ValueError(
                    f"the tensor {key} is {tensor.dtype}, where numbers with a fraction are expected; export the file "
                    "again as fp16, bf16 or fp32"
                )
        elif not _is_finite(tensor):
            raise ValueError(
                f"the tensor {key} holds NaN or infinity: the file is damaged, or its training diverged. Use an "
                "earlier one, or train again with a lower learning rate"
            )


def _is_finite(tensor: Tensor) -> bool:
    if tensor.device.type == "meta":
        return True
    return bool(torch.isfinite(tensor if tensor.element_size() > 1 else tensor.to(torch.float32)).all())


def _cast(key: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor.detach().cpu()
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"the tensor {key} holds NaN or infinity: the training diverged. Save an earlier checkpoint")
    cast = tensor.detach().cpu().to(torch.float32 if key.endswith(f".{suffixes.ALPHA}") else dtype)
    if not bool(torch.isfinite(cast).all()):
        raise ValueError(f"the tensor {key} has values too large for {dtype}; save as fp32 or bf16")
    return cast.contiguous()


def _unmatched(keys: list[str], count: int, known: bool) -> str:
    where = "the MODEL has no such layer" if known else "no known architecture has such a layer"
    hint = (
        "It was made for another kind of model; load it with the one it was trained on"
        if known
        else "Connect the MODEL it was made for, so that its layers can be looked up"
    )
    return f"{len(keys)} of its {count} keys name no layer; the first is {keys[0]}: {where}. {hint}"
