"""The weights of a MODEL and CLIP without any LoRA, by the names that LoRA files give to layers."""

from __future__ import annotations

from typing import Any

import comfy.lora
import comfy.model_patcher
import torch
from torch import Tensor

from ...lora.on_base import BaseWeights
from ...lora.resolve import tensor_name


def base_weights(model: comfy.model_patcher.ModelPatcher, clip: Any | None = None) -> BaseWeights:
    """For ``merge_loras(base=…)``. model: the host's MODEL; clip: its CLIP, for layers of text encoders, or None.

    Patches on the MODEL (LoRAs that were loaded before) are not in the weights, also where the host has put them in.
    Scaled fp8 and quantised weights come out as they act. Nothing is copied before a weight is asked for.
    """
    patchers = [(model, comfy.lora.model_lora_keys_unet(model.model, {}))]
    if clip is not None:
        patchers.append((clip.patcher, comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})))
    unpatched = [patcher.get_key_patches() for patcher, _ in patchers]

    def weight(layer: str) -> Tensor | None:
        for (_, names), weights in zip(patchers, unpatched, strict=True):
            target = names.get(tensor_name(layer))
            key, rows, *turn = (target, None) if isinstance(target, str) else target or (None, None)
            if key not in weights or any(turn):  # halves that change places: their rows are not the file's rows
                continue
            found, as_it_acts = weights[key][0][:2]
            whole: Tensor = as_it_acts(found)
            return whole if rows is None else whole.narrow(*rows)
        return None

    return BaseWeights(weight, _divides_rows_by_base())


def _divides_rows_by_base() -> bool:
    """Whether this host divides a magnitude of rows by ‖W‖; asked of it, for it may be changed.

    W = (1, 0) and ΔW = (0, 1) with magnitude 1 come out as (1, 1) if so, and divided by √2 if not.
    """
    one = torch.ones(1, 1)
    parts = {"x.lora_up.weight": one, "x.lora_down.weight": torch.tensor([[0.0, 1.0]]), "x.dora_scale": one}
    patch = comfy.lora.load_lora(parts, {"x": "x.weight"})["x.weight"]
    after = comfy.lora.calculate_weight([(1.0, patch, 1.0, None, None)], torch.tensor([[1.0, 0.0]]), "x.weight")
    return bool(after[0, 0] > 0.9)
