"""What a trained LoRA is told about its base model and its training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import comfy.model_patcher

from ...lora.metadata import build_metadata, rank_and_alpha
from ...trainers.dataset import PictureSet
from ...trainers.outcome import TrainingResult
from .denoiser import parameterisation

FAMILIES = (
    ("SDXL", "sdxl"),
    ("SSD1B", "sdxl"),
    ("Segmind_Vega", "sdxl"),
    ("KOALA", "sdxl"),
    ("SD15", "sd1"),
    ("SD2", "sd2"),
    ("LotusD", "sd2"),
    ("SD3", "sd3"),
    ("Flux", "flux"),
)
"""How the host's model classes begin -> the names of ``lora.metadata.FAMILIES``. Other models go by the host's name."""


def family(model: comfy.model_patcher.ModelPatcher, prediction: str) -> str:
    """``sd1``, ``sd2-v``, ``sdxl`` … by the class that the host recognised the model as."""
    name = type(model.model.model_config).__name__
    ours = next((ours for theirs, ours in FAMILIES if name.startswith(theirs)), name.lower())
    return "sd2-v" if ours == "sd2" and prediction == "v" else ours


def res_blocks(model: comfy.model_patcher.ModelPatcher) -> list[int] | None:
    """Residual blocks of each level of a UNet, which decide diffusers' layer names; None for other models."""
    blocks = model.model.model_config.unet_config.get("num_res_blocks")
    return [int(block) for block in blocks] if isinstance(blocks, (list, tuple)) else None


def describe(model: Any, pictures: PictureSet, result: TrainingResult) -> dict[str, str]:
    """The metadata of a finished run. It has no time in it: the same run gives the same file."""
    prediction = parameterisation(model.get_model_object("model_sampling"))
    config = result.config
    sizes = [picture.target_size for picture in pictures.pictures]
    height, width = max(set(sizes), key=sizes.count)
    rank, alpha = rank_and_alpha(result.tensors)  # with some inits, twice what was asked for
    return build_metadata(
        family=family(model, prediction),
        prediction=prediction,
        res_blocks=res_blocks(model),
        trigger=pictures.trigger,
        class_noun=pictures.class_noun,
        captions=[
            picture.caption
            for member in pictures.members()
            for picture in member.pictures
            for _ in range(member.repeats)
        ],
        resolution=(width, height),
        rank=rank or config.rank,
        alpha=config.alpha if alpha is None else alpha,
        steps=result.steps_done,
        learning_rate=config.learning_rate,
        text_encoder_learning_rate=config.text_encoder_learning_rate or None,
        batch_size=config.batch_size,
        seed=config.seed,
        optimizer=config.optimizer,
        final_loss=result.losses[-1] if result.losses else None,
        config=asdict(config),
    )
