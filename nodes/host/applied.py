"""A LoRA into MODEL and CLIP, by the host's own patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import comfy.lora
import comfy.sd
from torch import Tensor

from ...lora import suffixes
from ...lora.keys import canonicalise, check_fit
from ...lora.model import LoraTensors
from ...lora.resolve import TEXT_ENCODERS, layer_name
from .layers import model_layers


def applied(
    model: Any, lora: Mapping[str, Tensor], strength_model: float, clip: Any = None, strength_clip: float = 1.0
) -> tuple[Any, Any, str]:
    """MODEL and CLIP with a LoRA, and what was done in words; the host adds ΔW when it loads or saves the weights.

    Raises:
        ValueError: a layer of the LoRA is not in the model, or is of another size.
    """
    lora = fitted(model, lora)
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        known = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, known)
    bases = dict.fromkeys(split[0] if (split := suffixes.split(key)) else key for key in lora)
    of_text = [base for base in bases if layer_name(base).startswith(TEXT_ENCODERS)]
    waiting = set(of_text) if clip is None else set()
    if strange := [base for base in bases if base not in known and base not in waiting]:
        raise ValueError(
            f"{len(strange)} of the LoRA's {len(bases)} layers are not in this model; the first is {strange[0]}. "
            "It was made for another model"
        )
    lora = {key: lora[key] for key in lora if (suffixes.split(key) or (key,))[0] not in waiting}
    changed, changed_clip = comfy.sd.load_lora_for_models(model, clip, lora, strength_model, strength_clip)
    report = f"{len(bases) - len(of_text)} layers of the model × {strength_model:g}"
    if of_text and clip is None:
        report += f"; {len(of_text)} layers of text encoders left out: connect clip"
    elif of_text:
        report += f", {len(of_text)} layers of text encoders × {strength_clip:g}"
    return changed, changed_clip, report


def fitted(model: Any, lora: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The LoRA in the names that the host knows.

    Raises:
        ValueError: a layer of it is not in the model, or is of another size.
    """
    layers = model_layers(model)
    if not isinstance(lora, LoraTensors):
        found = canonicalise(lora, layers)
        lora = {**found.tensors, **{key: lora[key] for key in found.unmatched if key in lora}}
    check_fit(lora, layers)
    return lora
