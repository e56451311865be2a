"""A LoRA file in comfy naming whose tensors are read when they are asked for: a hundred files in little memory.

They are read and not mapped: pages of a mapped file stay resident, and a hundred files' would fill the memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from . import cloneofsimo, files, suffixes
from .keys import Layers, check_fit, place
from .load import check_known, check_numbers, load_lora
from .metadata import peft_alphas, res_blocks_of
from .model import LoraTensors

_CHUNK = 1 << 20


class LoraFile(Mapping[str, Tensor]):
    """What ``load_lora`` gives, read a tensor at a time; ``merge_loras`` takes it as a LoRA.

    outline: the same keys with tensors on the meta device, for names, shapes and dtypes; alphas are really there.
    metadata: the file's. Whether numbers are finite is seen by whoever reads them, as merging does.
    """

    def __init__(self, path: str | os.PathLike[str], layers: Layers | None = None) -> None:
        """Raises what ``load_lora`` raises, but for NaN; and ValueError for a torch file."""
        self._path, self._layers = Path(path), layers
        files.check_start(self._path)
        self._stored, self.metadata, self._start = files.read_layout(self._path)
        self._state = self._path.stat()
        outline = {name: self._read(name) if _is_small(name, one) else _meta(one) for name, one in self._stored.items()}
        files.check_names(self._path, outline)
        try:
            check_numbers(outline)
            self._alphas = peft_alphas(self.metadata, outline)
            names = {id(tensor): name for name, tensor in outline.items()}
            if cloneofsimo.is_cloneofsimo(outline):
                outline = cloneofsimo.to_diffusers(outline)
            self._names = {name: names[id(tensor)] for name, tensor in outline.items()}
            self._placed = place(outline, layers, res_blocks_of(self.metadata))
            check_known(self._placed.layers, self._placed.unmatched, len(outline), layers is not None)
            self.outline: dict[str, Tensor] = {}
            self._layer_of: dict[str, str] = {}
            for layer in self._placed.layers:
                made = self._placed.assemble(layer, outline, layers, self._alphas)
                self.outline |= made
                self._layer_of |= dict.fromkeys(made, layer)
            if layers is not None:
                check_fit(self.outline, layers)
        except ValueError as error:
            raise ValueError(f"{self._path.name}: {error}") from error
        self._as_stored = {key: names[id(tensor)] for key, tensor in self.outline.items() if id(tensor) in names}
        self._last: tuple[str, dict[str, Tensor]] = ("", {})

    def __getitem__(self, key: str) -> Tensor:
        """A tensor of its own. Raises ValueError where the file was written over since it was opened."""
        if self.outline[key].device.type != "meta":
            return self.outline[key].clone()
        if key in self._as_stored:
            return self._read(self._as_stored[key])
        layer = self._layer_of[key]
        if self._last[0] != layer:
            bases = [base for _, base in self._placed.layers[layer]]
            there = {name: self._read(self._names[name]) for base in bases for name in self._placed.keys[base]}
            self._last = layer, self._placed.assemble(layer, there, self._layers, self._alphas)
        return self._last[1][key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.outline)

    def __len__(self) -> int:
        return len(self.outline)

    def file_hash(self) -> str:
        """sshs_model_hash: the SHA-256 (hex) of the file's bytes after its header."""
        digest = hashlib.sha256()
        with self._path.open("rb") as file:
            file.seek(self._start)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()

    def _read(self, name: str) -> Tensor:
        stored = self._stored[name]
        content = bytearray(stored.end - stored.start)
        with self._path.open("rb", buffering=0) as file:
            now = os.fstat(file.fileno())
            file.seek(stored.start)
            read = file.readinto(content)
        if (now.st_size, now.st_mtime_ns) != (self._state.st_size, self._state.st_mtime_ns) or read != len(content):
            raise ValueError(f"{self._path.name} was written over while it was read. Run this again")
        if not content:
            return torch.empty(stored.shape, dtype=stored.dtype)
        return torch.frombuffer(content, dtype=torch.uint8).view(stored.dtype).reshape(stored.shape)


def open_lora(path: str | os.PathLike[str], layers: Layers | None = None) -> LoraFile | LoraTensors:
    """A LoRA file for merging: ``load_lora``'s keys and tensors, of a safetensors file read when asked for.

    layers: see ``load_lora``, and so for what is raised. A torch file is read whole.
    """
    return load_lora(path, layers) if files.is_torch_file(Path(path)) else LoraFile(path, layers)


def _is_small(name: str, stored: files.StoredTensor) -> bool:
    """Whether a tensor is one number, such as alpha, of which more than the shape is asked."""
    return stored.end - stored.start <= 8 and (suffixes.split(name) or ("", ""))[1] == suffixes.ALPHA


def _meta(stored: files.StoredTensor) -> Tensor:
    return torch.empty(stored.shape, dtype=stored.dtype, device="meta")
