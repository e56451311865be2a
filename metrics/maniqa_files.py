"""MANIQA's published files: KonIQ-10k's and KADID-10k's. PIPAL's is a pickled program, which is not read."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from . import tensors, timm_vit
from .maniqa import BLOCKS, SIDE, Maniqa

WANTED = (
    "take ckpt_koniq10k.pt or ckpt_kadid10k.pt of github.com/IIGROUP/MANIQA/releases, or a safetensors file with the "
    "same names"
)
_UNUSED = re.compile(
    r"vit\.(head\..*|blocks\.1[01]\..*)"  # behind the last block that is looked at
    r"|swintransformer[12]\.(downsample\..*|.*\.(relative_position_index|attn_mask))"  # not called; counted anew
)


def is_maniqa(name: str) -> bool:
    """Whether a file may be MANIQA's, by its name."""
    return any(part in name.lower() for part in ("maniqa", "koniq10k", "kadid10k"))


def load_maniqa(path: Path) -> Maniqa:
    """The network of a file.

    Raises:
        ValueError: it is another one, or not whole; names what is missing.
    """
    state = {}
    for name, tensor in tensors.read_tensors(path, WANTED).items():
        if not _UNUSED.fullmatch(name):
            state[_renamed(name)] = tensor.float()
    seen = {name.removeprefix("vit."): tensor for name, tensor in state.items() if name.startswith("vit.")}
    hidden = state.get("swintransformer1.layers.0.blocks.0.mlp.fc1.bias", torch.empty(0))
    with torch.device("meta"):
        try:
            vit = timm_vit.empty_vit(seen, SIDE, BLOCKS[-1] + 1)
        except ValueError as why:
            raise ValueError(f"{path} is not MANIQA, {why}; {WANTED}") from why
        cells = SIDE // vit.config.patch_size
        network = Maniqa(vit, vit.config.hidden_size, len(hidden), cells, path.stem)
    for name, index in _indices(network).items():
        state[name] = index
    tensors.fill(network, state, path, "MANIQA", WANTED)
    return network.eval()


def _renamed(name: str) -> str:
    return "vit." + timm_vit.renamed(name.removeprefix("vit.")) if name.startswith("vit.") else name


def _indices(network: Maniqa) -> dict[str, Tensor]:
    """Which relative place a pair in a window has: counted again, for the network lies on the meta device."""
    from torchvision.models.swin_transformer import ShiftedWindowAttention

    found = {}
    for name, module in network.named_modules():
        if isinstance(module, ShiftedWindowAttention):
            alike = ShiftedWindowAttention(8, module.window_size, module.shift_size, module.num_heads)
            found[f"{name}.relative_position_index"] = alike.relative_position_index
    return found
