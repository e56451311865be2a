"""The endings of LoRA keys: every way to say "up of this layer" turned into one.

A key is a base (which layer) and a suffix (which of its tensors). The suffixes here are those that ComfyUI's
weight adapters read, those of peft (with an adapter's name inside), and malformed ones that public files have.
"""

from __future__ import annotations

import re

from torch import Tensor

UP, DOWN, MID, ALPHA = "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha"

# Written by one program or another for the same two matrices. The group before them is the layer's name.
_FACTORS = re.compile(
    r"^(?P<base>.+?)"
    r"(?:[._]lora_(?P<kohya>up|down|mid)\.weight"  # kohya, comfy; `_lora_down.weight` is a malformed kohya file
    r"|[._]lora\.(?P<diffusers>up|down)\.weight"  # diffusers, with and without `processor`
    r"|\.lora_linear_layer\.(?P<transformers>up|down)\.weight"  # diffusers' text encoders
    r"|\.lora_(?P<peft>[AB])(?:\.(?!weight$|bias$)[^.]+)?(?:\.weight)?)$"  # peft; `.default` is the adapter's name
)
_OTHERS = (
    "alpha",
    "dora_scale",
    "diff",
    "diff_b",
    "set_weight",
    "reshape_weight",
    "w_norm",
    "b_norm",
    "hada_w1_a",
    "hada_w1_b",
    "hada_w2_a",
    "hada_w2_b",
    "hada_t1",
    "hada_t2",
    "lokr_w1",
    "lokr_w1_a",
    "lokr_w1_b",
    "lokr_w2",
    "lokr_w2_a",
    "lokr_w2_b",
    "lokr_t2",
    "oft_blocks",
    "oft_diag",
    "rescale",
    "a1.weight",
    "a2.weight",
    "b1.weight",
    "b2.weight",
)
_OTHER = re.compile(r"^(?P<base>.+)\.(?P<suffix>" + "|".join(re.escape(s) for s in _OTHERS) + r")$")
_MAGNITUDE = re.compile(r"^(?P<base>.+)\.lora_magnitude_vector(?:\.[^.]+)*$")
_ROLES = {"up": UP, "down": DOWN, "mid": MID, "A": DOWN, "B": UP}


def split(key: str) -> tuple[str, str] | None:
    """(base, suffix in comfy naming) of a LoRA key, or None where the key is no part of a LoRA.

    `unet.x.attn1.processor.to_q_lora.up.weight` gives (`unet.x.attn1.processor.to_q`, `lora_up.weight`).
    """
    if found := _FACTORS.match(key):
        role = found["kohya"] or found["diffusers"] or found["transformers"] or found["peft"]
        return found["base"], _ROLES[role]
    if found := _MAGNITUDE.match(key):  # DoRA as peft calls it
        return found["base"], "dora_scale"
    if found := _OTHER.match(key):
        return found["base"], found["suffix"]
    return None


def is_peft_magnitude(key: str) -> bool:
    """Whether the key is a DoRA's magnitude as peft names it, one number of each row of the weight."""
    return _MAGNITUDE.match(key) is not None


def as_rows(magnitude: Tensor) -> Tensor:
    """peft's (out,), of a convolution (1, out, 1, 1), as the host has magnitudes of rows: (out, 1), (out, 1, 1, 1)."""
    return magnitude.reshape(-1, *(1,) * max(1, magnitude.ndim - 1))


def is_lora(key: str) -> bool:
    """Whether the key holds a change to a weight (an alpha alone changes nothing)."""
    parts = split(key)
    return parts is not None and parts[1] != ALPHA
