"""The two names of every layer of a Stable Diffusion 1, 2 or XL UNet: the checkpoint's own (sgm) and diffusers'.

Where a block stands follows from the UNet's structure alone, which is one number a level: how many res blocks it has.
Level x of the encoder starts at input block 1 + Σ_{y<x} (res_blocks[y] + 1), the last of each level being the
downsampler; a level of the decoder has one block more than the encoder's. Below a block the names differ only for
res blocks; attention keeps its names. Checked against the host's own map in tests/host/test_lora_names.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

SD15 = (2, 2, 2, 2)
SDXL = (2, 2, 2)
_ALTERNATIVES = (SD15, SDXL, (1, 1))  # tried in this order when nobody says; (1, 1) is Tiny world's

_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_RESNET_BACK = {v: k for k, v in _RESNET.items()}
_BASIC = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_BASIC_BACK = {v: k for k, v in _BASIC.items()} | {
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
}
_SGM = re.compile(r"^(input_blocks|output_blocks)\.(\d+)\.(\d+)\.(.+)$")
_SGM_MIDDLE = re.compile(r"^middle_block\.(\d+)\.(.+)$")
_DIFFUSERS = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)$")
_DIFFUSERS_MIDDLE = re.compile(r"^mid_block\.(resnets|attentions)\.(\d+)\.(.+)$")


def is_sgm(name: str) -> bool:
    """Whether this is the checkpoint's own name of a layer of such a UNet (without `diffusion_model.`)."""
    return name in _BASIC or bool(_SGM.match(name) or _SGM_MIDDLE.match(name))


def is_diffusers(name: str) -> bool:
    """Whether this is diffusers' name of a layer of such a UNet (without `unet.`)."""
    return name in _BASIC_BACK or bool(_DIFFUSERS.match(name) or _DIFFUSERS_MIDDLE.match(name))


def to_diffusers(name: str, res_blocks: Sequence[int]) -> str | None:
    """diffusers' name of an sgm layer, both without prefix; None where this UNet has no such layer."""
    if name in _BASIC:
        return _BASIC[name]
    if found := _SGM_MIDDLE.match(name):
        place, rest = int(found[1]), found[2]
        if place == 1:
            return f"mid_block.attentions.0.{rest}"
        inner = _RESNET.get(rest)
        return f"mid_block.resnets.{place // 2}.{inner}" if inner and place in (0, 2) else None
    found = _SGM.match(name)
    if not found:
        return None
    side, block, place, rest = found[1], int(found[2]), int(found[3]), found[4]
    down = side == "input_blocks"
    spot = _find_block(block - 1 if down else block, res_blocks if down else list(reversed(res_blocks)))
    if spot is None:
        return None
    level, index, last = spot
    prefix = f"{'down' if down else 'up'}_blocks.{level}"
    if down and last:
        return f"{prefix}.downsamplers.0.conv" if (place, rest) == (0, "op") else None
    if not down and last and place > 0 and rest == "conv":
        return f"{prefix}.upsamplers.0.conv"
    if place == 0:
        inner = _RESNET.get(rest)
        return f"{prefix}.resnets.{index}.{inner}" if inner else None
    return f"{prefix}.attentions.{index}.{rest}" if place == 1 else None


def to_sgm(name: str, res_blocks: Sequence[int], attention_at_top: Iterable[int] | None = None) -> str | None:
    """The sgm name of a diffusers layer, both without prefix; None where this UNet has no such layer.

    attention_at_top: the decoder levels whose last block has attention, which decides where their upsampler stands;
    None takes the known families' (SD1/2: all but level 0; SDXL: all but level 2; others: all).
    """
    if name in _BASIC_BACK:
        return _BASIC_BACK[name]
    if found := _DIFFUSERS_MIDDLE.match(name):
        kind, index, rest = found[1], int(found[2]), found[3]
        if kind == "attentions":
            return f"middle_block.1.{rest}" if index == 0 else None
        return f"middle_block.{2 * index}.{_RESNET_BACK[rest]}" if rest in _RESNET_BACK and index < 2 else None
    found = _DIFFUSERS.match(name)
    if not found:
        return None
    side, level, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    down = side == "down"
    counts = list(res_blocks) if down else list(reversed(res_blocks))
    if level >= len(counts) or (down and kind == "upsamplers") or (not down and kind == "downsamplers"):
        return None
    first = sum(n + 1 for n in counts[:level]) + (1 if down else 0)
    if kind == "downsamplers":
        return f"input_blocks.{first + counts[level]}.0.op" if rest == "conv" else None
    if kind == "upsamplers":
        attention = level in (_default_attention(res_blocks) if attention_at_top is None else set(attention_at_top))
        return f"output_blocks.{first + counts[level]}.{2 if attention else 1}.conv" if rest == "conv" else None
    if index >= counts[level] + (0 if down else 1):
        return None
    block = f"{'input' if down else 'output'}_blocks.{first + index}"
    if kind == "attentions":
        return f"{block}.1.{rest}"
    return f"{block}.0.{_RESNET_BACK[rest]}" if rest in _RESNET_BACK else None


def res_blocks_of(names: Iterable[str]) -> tuple[int, ...] | None:
    """The res blocks a level of a UNet of which all layer names are known; None where this is no such UNet.

    The encoder's blocks are counted, and a level ends where a block holds a downsampler.
    """
    blocks: dict[int, bool] = {}
    for name in names:
        found = _SGM.match(name)
        if found and found[1] == "input_blocks" and found[2] != "0":
            blocks[int(found[2])] = blocks.get(int(found[2]), False) or found[4] == "op"
    counts, count = [], 0
    for number in sorted(blocks):
        if blocks[number]:
            counts.append(count)
            count = 0
        else:
            count += 1
    return (*counts, count) if blocks else None


def guess_res_blocks(names: Iterable[str], context: int | None = None) -> tuple[int, ...] | None:
    """The structure that the sgm names in a LoRA allow, where nobody says which it is; None where none fits.

    context: width of the text embedding (input of attn2.to_k); 2048 is SDXL's alone.
    """
    seen = [m for name in names if (m := _SGM.match(name))]
    attention = {(m[1], int(m[2])) for m in seen if m[3] == "1" and m[4] != "conv"}
    for candidate in (SDXL, *_ALTERNATIVES) if context == 2048 else _ALTERNATIVES:
        if seen and all(to_diffusers(m[0], candidate) for m in seen) and attention <= _attention_blocks(candidate):
            return candidate
    return None


def _find_block(number: int, counts: Sequence[int]) -> tuple[int, int, bool] | None:
    """(level, place in the level, whether it is the level's last) of the number-th block."""
    for level, count in enumerate(counts):
        if 0 <= number <= count:
            return level, number, number == count
        number -= count + 1
    return None


def _default_attention(res_blocks: Sequence[int]) -> set[int]:
    levels = set(range(len(res_blocks)))
    return levels - {0} if tuple(res_blocks) == SD15 else levels - {2} if tuple(res_blocks) == SDXL else levels


def _attention_blocks(res_blocks: tuple[int, ...]) -> set[tuple[str, int]]:
    """The blocks that hold attention in the known families; of SDXL and SD1.5 those that differ tell them apart."""
    inputs = {SD15: (1, 2, 4, 5, 7, 8), SDXL: (4, 5, 7, 8), (1, 1): (1, 3)}[res_blocks]
    outputs = {SD15: range(3, 12), SDXL: range(6), (1, 1): range(4)}[res_blocks]
    return {("input_blocks", n) for n in inputs} | {("output_blocks", n) for n in outputs}
