"""Reading LoRA files of every kind safely, and writing safetensors whole or not at all.

A safetensors file is: 8 bytes, the header's length n (little-endian); n bytes of JSON: name -> dtype, shape and
data_offsets (bytes, from the header's end), and `__metadata__`; then the tensors' bytes.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from . import cloneofsimo, suffixes
from .atomic import write_whole

_TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_MAX_HEADER = 100_000_000  # the format's own limit, in bytes
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}
# The order in which safetensors lays tensors out: the widest first, and these before one another at the same width.
_ORDER = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "F8_E4M3", "F8_E5M2", "I8", "U8", "BOOL")


def read_lora(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors as the file names them, metadata) of a LoRA file, on the CPU.

    Raises FileNotFoundError where there is none, and ValueError where the file is truncated, is no LoRA, is a web page
    or a Git LFS pointer, or is a pickle that holds anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name} in {path.parent}")
    with path.open("rb") as file:
        start = file.read(512)
    _refuse_by_content(path, start)
    if path.suffix.lower() in _TORCH_ENDINGS:
        tensors = _read_torch(path)
        metadata: dict[str, str] = {}
    else:
        tensors, metadata = read_safetensors(path)
    _refuse_other_models(path, tensors)
    return tensors, metadata


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of any safetensors file. Raises ValueError saying how it is broken, where it is."""
    path = Path(path)
    header = _read_header(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except Exception as error:  # safetensors' own errors share no base class
        raise ValueError(f"{path.name} is no valid safetensors file: {error}. Download or export it again") from error
    return tensors, {str(k): str(v) for k, v in header.get("__metadata__", {}).items()}


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file so that, whenever the process dies, `path` is the old file or the new one, never half.

    The bytes depend on the tensors and the metadata alone (safetensors' own writer orders metadata at random). Written
    beside, synced to the disk, then renamed over; a process that is killed can leave a hidden `.tmp` file behind.
    """
    path = Path(path)
    named = {name: tensor.detach().cpu().contiguous() for name, tensor in sorted_tensors(tensors)}
    header: dict[str, object] = {}
    if metadata:
        wrong = [key for key, value in metadata.items() if not (isinstance(key, str) and isinstance(value, str))]
        if wrong:
            raise ValueError(f"the metadata {wrong[0]!r} is no text: safetensors holds text only; convert it with json")
        header["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    end = 0
    for name, tensor in named.items():
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    head = len(encoded).to_bytes(8, "little") + encoded
    write_whole(path, chain([head], (tensor_bytes(tensor) for tensor in named.values())))


def sorted_tensors(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """The tensors in the order in which safetensors lays them out: by dtype, then by name.

    Raises ValueError naming the tensor whose dtype the format does not have.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise ValueError(f"the tensor {name} is {tensor.dtype}, which safetensors cannot hold; convert it")
    return sorted(tensors.items(), key=lambda item: (_ORDER.index(_NAMES[item[1].dtype]), item[0]))


def tensor_bytes(tensor: Tensor) -> bytes:
    """A tensor's values as they stand in the file: row by row, little-endian."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes()) if flat.numel() else b""


def _read_header(path: Path) -> dict[str, dict[str, str]]:
    """The JSON header, once the file is known to be as long as it says."""
    size = path.stat().st_size
    again = "Download or export it again"
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or (8 + length > size and length <= _MAX_HEADER):
            raise ValueError(f"{path.name} is truncated: it ends within its header ({size} bytes). {again}")
        if length > _MAX_HEADER:
            raise ValueError(f"{path.name} is no safetensors file: it starts with {start!r}. {again}")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            expected = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(
                f"{path.name} is no valid safetensors file: its header is broken ({error}). {again}"
            ) from error
    if size < expected:
        raise ValueError(f"{path.name} is truncated: it has {size} of {expected} bytes. {again}")
    return dict(header)


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, read by the loader that runs no code of the file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path.name} is a pickle that holds more than tensors, and reading it could run code: refused "
            f"({str(error).splitlines()[0]}). Get the file as safetensors"
        ) from error
    except Exception as error:  # torch raises what the broken archive happens to cause
        raise ValueError(
            f"{path.name} is a torch file that cannot be read (truncated, or not a torch file at all): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}. Get the file as safetensors"
        ) from error
    while isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(
            f"{path.name} holds a {type(content).__name__} that is no table of named tensors, so its layers are not "
            "known. Convert it to safetensors with the program that made it"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _refuse_by_content(path: Path, start: bytes) -> None:
    """Refuse what is often downloaded in place of a model file."""
    text = start.lstrip().lower()
    if not start:
        raise ValueError(f"{path.name} is empty. Download or export it again")
    if text.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path.name} is a Git LFS pointer, not the file it points to. Run `git lfs pull`, or download it"
        )
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(
            f"{path.name} is a web page, not a model: the download needs a login or moved. Download it again"
        )
    pickled = start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04"))
    if pickled and path.suffix.lower() not in _TORCH_ENDINGS:
        raise ValueError(f"{path.name} is a pickle under another name: refused. Get the file as safetensors")
    if text.startswith(b"gguf"):
        raise ValueError(f"{path.name} is a GGUF model, not a LoRA. Choose a LoRA as safetensors")


def _refuse_other_models(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a file without a single LoRA key, and say what it looks like instead."""
    if any(suffixes.is_lora(key) for key in tensors) or cloneofsimo.is_cloneofsimo(tensors):
        return
    keys = list(tensors)
    kinds = {
        "a whole checkpoint": ("model.diffusion_model.", "cond_stage_model.", "conditioner.", "first_stage_model."),
        "a UNet or transformer": (
            "down_blocks.",
            "transformer_blocks.",
            "double_blocks.",
            "joint_blocks.",
            "input_blocks.",
        ),
        "a VAE": ("encoder.down", "decoder.up", "decoder.mid", "quant_conv."),
        "a ControlNet": ("control_model.", "controlnet_"),
        "a text encoder": ("text_model.", "encoder.block."),
        "a textual inversion embedding": ("emb_params", "clip_l", "clip_g", "string_to_param", "<"),
    }
    looks = next((kind for kind, starts in kinds.items() if any(key.startswith(starts) for key in keys)), None)
    raise ValueError(
        f"{path.name} is no LoRA: none of its {len(keys)} tensors is a change to a weight "
        f"(the first is {keys[0] if keys else 'missing'})" + (f". It looks like {looks}" if looks else "")
    )
