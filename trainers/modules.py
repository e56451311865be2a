"""Which modules a run trains: the diffusion model's, and text encoders where the configuration says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from .config import TrainingConfig
from .denoiser import Denoiser
from .targets import PREFIX, matched_layers, text_encoder_layers


@dataclass(frozen=True)
class TrainedModules:
    """What adapters go into.

    Attributes:
        modules: prefix of the canonical layer names -> module.
        layers: canonical names of the layers that are trained.
        devices: prefix -> where the module computes.
        rates: prefix -> factor of the learning rate.
    """

    modules: Mapping[str, nn.Module]
    layers: tuple[str, ...]
    devices: Mapping[str, torch.device]
    rates: Mapping[str, float]


def trained_modules(denoiser: Denoiser, config: TrainingConfig) -> TrainedModules:
    """As a validated configuration says.

    Raises:
        ValueError: a choice matches no layer, or text encoders are to be trained and the Denoiser has none.
    """
    modules: dict[str, nn.Module] = {PREFIX: denoiser.module}
    layers = matched_layers(modules, config.targets, config.target_pattern)
    devices, rates = {PREFIX: denoiser.device}, {PREFIX: 1.0}
    if config.text_encoder_learning_rate > 0:
        encoders: Mapping[str, nn.Module] = getattr(denoiser, "text_encoders", {})
        if not encoders:
            raise ValueError(
                "text_encoder_learning_rate is above 0, but this model comes without text encoders. Set it to 0."
            )
        layers += text_encoder_layers(encoders, config.text_encoders, config.text_encoder_pattern)
        modules |= encoders
        devices |= getattr(denoiser, "text_devices", dict.fromkeys(encoders, denoiser.device))
        rates |= dict.fromkeys(encoders, config.text_encoder_learning_rate / config.learning_rate)
    return TrainedModules(modules, layers, devices, rates)
