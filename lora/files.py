"""Reading LoRA files of every kind safely, and writing safetensors whole or not at all.

A safetensors file is: 8 bytes, the header's length n (little-endian); n bytes of JSON: name -> dtype, shape and
data_offsets (bytes, from the header's end), and `__metadata__`; then the tensors' bytes.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from . import cloneofsimo, suffixes
from .atomic import write_whole

_TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
_MAX_HEADER = 100_000_000  # the format's own limit, in bytes
_EXPLAINED = 4_000_000  # a broken header up to this size is looked into, to say what is wrong
_LONGEST_NAME = 1000  # characters; the longest of a real layer are below 200
_MOST_DIMENSIONS = 8
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
    or a Git LFS pointer, is a pickle that holds anything but tensors, or claims more than it holds. The memory it takes
    is a small multiple of the file's size, whatever the file says.
    """
    path = Path(path)
    check_start(path)
    if is_torch_file(path):
        tensors = _read_torch(path)
        metadata: dict[str, str] = {}
    else:
        tensors, metadata = read_safetensors(path)
    check_names(path, tensors)
    return tensors, metadata


def is_torch_file(path: Path) -> bool:
    """Whether the name is that of a pickle."""
    return path.suffix.lower() in _TORCH_ENDINGS


def check_start(path: Path) -> None:
    """Refuse what is no file, and what by its first bytes is no model file. Raises as ``read_lora`` does."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path.name} in {path.parent}")
    with path.open("rb") as file:
        start = file.read(512)
    _refuse_by_content(path, start)


def check_names(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse names and shapes that no LoRA has. Raises as ``read_lora`` does."""
    _refuse_strange(path, tensors)
    _refuse_other_models(path, tensors)


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of any safetensors file. Raises ValueError saying how it is broken, where it is.

    The tensors are copies. Those that the library gives are windows into the file, and a program that writes over it
    later, as some trainers do, would change them, or end this process where the file became shorter.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
        names = list(file.keys())  # it cannot be iterated itself
        return {name: file.get_tensor(name).clone() for name in names}, metadata


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """(name -> shape, metadata) of a safetensors file; no tensor is read. Raises as ``read_safetensors`` does."""
    with _opened(Path(path)) as file:
        metadata = dict(file.metadata() or {})
        return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}, metadata


def read_layout(path: str | os.PathLike[str]) -> tuple[dict[str, StoredTensor], dict[str, str], int]:
    """(where each tensor lies, metadata, where the tensors begin) of a safetensors file, checked by its library.

    Raises ValueError as ``read_safetensors`` does, and where a tensor is of a dtype that torch does not have.
    """
    path = Path(path)
    with _opened(path) as file:
        metadata = dict(file.metadata() or {})
    with path.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(length))
    dtypes = {name: dtype for dtype, name in _NAMES.items()}
    stored = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in dtypes:
            raise ValueError(f"{path.name}: the tensor {name} is {entry['dtype']}, which is not known here")
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        stored[name] = StoredTensor(dtypes[entry["dtype"]], tuple(entry["shape"]), start, end)
    return stored, metadata, 8 + length


@dataclass(frozen=True)
class StoredTensor:
    """Of one tensor of a file: what it is, and its first byte and the one after its last, from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The library's view of a file; whatever it says against it, and against what is done with it, in our words."""
    _refuse_short(path)
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except Exception as error:  # safetensors' own errors share no base class
        why = _explained(path) or str(error)[:300]
        raise ValueError(f"{path.name} is no valid safetensors file: {why}. Download or export it again") from error


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


def _refuse_short(path: Path) -> None:
    """Refuse a file that ends before the end of its header."""
    size = path.stat().st_size
    again = "Download or export it again"
    with path.open("rb") as file:
        start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or (8 + length > size and length <= _MAX_HEADER):
        raise ValueError(f"{path.name} is truncated: it ends within its header ({size} bytes). {again}")
    if length > _MAX_HEADER:
        raise ValueError(f"{path.name} is no safetensors file: it starts with {start!r}. {again}")


def _explained(path: Path) -> str:
    """What is wrong with a file that safetensors refused, where that is a broken header or a missing end; else ""."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > _EXPLAINED:
            return ""
        try:
            header = json.loads(file.read(length))
            ends = [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
        except Exception as error:  # too deep is a RecursionError, too large an OverflowError
            return f"its header is broken ({str(error)[:200]})"
    expected = 8 + length + max(ends, default=0)
    return f"{path.name} is truncated: it has {size} of {expected} bytes" if size < expected < 1 << 60 else ""


def _read_torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, read by the loader that runs no code of the file."""
    _refuse_archives(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]{1,80})", str(error))  # torch's own text advises to run the code
        raise ValueError(
            f"{path.name} is a pickle that holds more than tensors, and reading it could run code: refused"
            + (f" (it asks for {named[1]})" if named else "")
            + ". Get the file as safetensors"
        ) from error
    except Exception as error:  # torch raises what the broken archive happens to cause
        raise ValueError(
            f"{path.name} is a torch file that cannot be read (truncated, or not a torch file at all): "
            f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}. Get the file as safetensors"
        ) from error
    for _ in range(3):  # some programs wrap it twice, and a hostile file could hold itself
        if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
            content = content["state_dict"]
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise ValueError(
            f"{path.name} holds a {type(content).__name__} that is no table of named tensors, so its layers are not "
            "known. Convert it to safetensors with the program that made it"
        )
    claimed = 0
    for name, tensor in content.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.device.type != "cpu":
            raise ValueError(
                f"{path.name} holds {name[:100]!r} in a form that is no plain tensor (sparse, quantized, nested or "
                "without values). Convert it to safetensors with the program that made it"
            )
        claimed += tensor.numel() * tensor.element_size()
    if claimed > 4 * path.stat().st_size:  # a few shared tensors are honest, a million rows that are one are not
        raise ValueError(
            f"{path.name} has {path.stat().st_size} bytes and claims to hold {claimed}: refused, for it would fill the "
            "memory. Get the file as safetensors"
        )
    return {name: tensor.detach().clone() for name, tensor in content.items()}


def _refuse_archives(path: Path) -> None:
    """Refuse a torch file that would grow when it is read, or that older torch reads in an unsafe way."""
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"
    if zipped:
        try:
            with zipfile.ZipFile(path) as archive:
                packed = [item for item in archive.infolist() if item.compress_type != zipfile.ZIP_STORED]
                size = sum(item.file_size for item in archive.infolist())
                script = any(item.filename.endswith("constants.pkl") for item in archive.infolist())
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise ValueError(
                f"{path.name} is a torch file that cannot be read: its archive is broken ({str(error)[:200]}). "
                "Get the file as safetensors"
            ) from error
        if packed or size > path.stat().st_size:  # torch stores, and never compresses
            raise ValueError(
                f"{path.name} is an archive that unpacks to {size} bytes from {path.stat().st_size}, which no torch "
                "file does: refused. Get the file as safetensors"
            )
        if script:  # torch before 2.6 would run it
            raise ValueError(f"{path.name} is a program for torch and not a table of tensors: refused")
    elif tarfile.is_tarfile(path):  # torch before 2.6 runs code of such a file even when told not to (CVE-2025-32434)
        raise ValueError(
            f"{path.name} is a torch file of a form that has not been written since 2018, and older versions of torch "
            "run the code in it: refused. Get the file as safetensors"
        )


def _refuse_strange(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Refuse names and shapes that no layer has, on which every later step would spend its time."""
    for name, tensor in tensors.items():
        if len(name) > _LONGEST_NAME:
            raise ValueError(
                f"{path.name} has a tensor whose name is {len(name)} characters long ({name[:60]}…): no LoRA"
            )
        if tensor.ndim > _MOST_DIMENSIONS:
            raise ValueError(f"{path.name} has a tensor of {tensor.ndim} dimensions ({name[:200]}): no LoRA")


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
    # The length of a header may begin with the same bytes: 0x0480 is 1152.
    pickled = pickled and not (int.from_bytes(start[:8], "little") <= _MAX_HEADER and start[8:9] == b"{")
    if pickled and path.suffix.lower() not in _TORCH_ENDINGS:
        raise ValueError(f"{path.name} is a pickle under another name: refused. Get the file as safetensors")
    if start[8:9] == b"{" and path.suffix.lower() in _TORCH_ENDINGS:
        raise ValueError(f"{path.name} is a safetensors file under another name; rename it to end in .safetensors")
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
