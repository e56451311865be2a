"""Files of the first LoRA trainer for Stable Diffusion (cloneofsimo/lora): `unet:9:up` says "the tenth layer found".

There is no name in such a file: the number counts the layers in the order in which the trainer walked diffusers'
UNet. That walk goes through the down blocks, then the up blocks, then the middle (or the middle between them, in some
versions of diffusers), and in a transformer block through attn1, the first feed-forward layer, attn2 (or the
feed-forward last). Shapes tell which. The scale is always 1, as a file without alpha has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_KEY = re.compile(r"^(unet|text_encoder):(\d{1,9}):(up|down)$")
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_CLIP_ATTENTION = ("k_proj", "v_proj", "q_proj", "out_proj")  # the order in which CLIP registers them
_UP_AND_DOWN = [f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2)]
_UP = [f"up_blocks.{i}.attentions.{j}" for i in range(1, 4) for j in range(3)]
_MIDDLE = ["mid_block.attentions.0"]


def is_cloneofsimo(keys: Mapping[str, object]) -> bool:
    """Whether any key numbers its layer instead of naming it."""
    return any(_KEY.match(key) for key in keys)


def to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under diffusers' names; keys that number nothing (learned tokens) stay as they are.

    Raises ValueError where the count of layers is not that of a Stable Diffusion 1 or 2 file.
    """
    layers: dict[str, dict[int, dict[str, Tensor]]] = {"unet": {}, "text_encoder": {}}
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if found := _KEY.match(key):
            layers[found[1]].setdefault(int(found[2]), {})[found[3]] = tensor
        else:
            out[key] = tensor
    for part, names in (("unet", _unet_names), ("text_encoder", _text_encoder_names)):
        numbered = layers[part]
        if not numbered:
            continue
        missing = next((number for number in range(len(numbered)) if number not in numbered), None)
        if missing is not None:
            raise ValueError(f"the file numbers its {part} layers and layer {missing} is missing: it is incomplete")
        for index, name in enumerate(names(numbered)):
            for role, tensor in numbered[index].items():
                out[f"{part}.{name}.lora.{role}.weight"] = tensor
    return out


def _rows(numbered: Mapping[int, Mapping[str, Tensor]], index: int) -> int:
    if "up" not in numbered[index]:
        raise ValueError(f"layer {index} of the file has no up factor: the file is incomplete")
    if numbered[index]["up"].ndim < 2:
        raise ValueError(f"layer {index} of the file has an up factor that is no matrix")
    return int(numbered[index]["up"].shape[0])


def _unet_names(numbered: Mapping[int, Mapping[str, Tensor]]) -> list[str]:
    count = len(numbered)
    if count not in (16 * 8, 16 * 9):
        raise ValueError(
            f"the file numbers {count} UNet layers; a Stable Diffusion 1 or 2 file has 128 (attention) or 144 "
            "(attention and feed-forward). Convert it to named keys with the program that made it"
        )
    first, second = [f"attn1.{n}" for n in _ATTENTION], [f"attn2.{n}" for n in _ATTENTION]
    feed_forward = ["ff.net.0.proj"]
    if count == 16 * 8:
        inside = first + second
    elif _rows(numbered, 4) > _rows(numbered, 0):  # the gated feed-forward is 8 times as high
        inside = first + feed_forward + second
    else:
        inside = first + second + feed_forward
    last_block = _rows(numbered, count - len(inside))
    middle_last = last_block > _rows(numbered, 0)
    blocks = _UP_AND_DOWN + (_UP + _MIDDLE if middle_last else _MIDDLE + _UP)
    return [f"{block}.transformer_blocks.0.{name}" for block in blocks for name in inside]


def _text_encoder_names(numbered: Mapping[int, Mapping[str, Tensor]]) -> list[str]:
    count = len(numbered)
    if count % len(_CLIP_ATTENTION):
        raise ValueError(f"the file numbers {count} text encoder layers; expected four a transformer layer")
    depth = count // len(_CLIP_ATTENTION)
    return [f"text_model.encoder.layers.{i}.self_attn.{name}" for i in range(depth) for name in _CLIP_ATTENTION]
