"""Small random models with small random text encoders, made by the host's own classes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.devtools.small_models import FLUX, UNET

_SDXL = UNET | {
    "model_channels": 64,
    "num_heads": -1,
    "num_head_channels": 64,
    "adm_in_channels": 32 + 6 * 256,
    "num_classes": "sequential",
}


def _clip(width: int) -> dict[str, Any]:
    return {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 2, "num_hidden_layers": 3}


_T5 = {"d_model": 48, "d_ff": 64, "d_kv": 24, "num_heads": 2, "num_layers": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sd15": ("SD15", UNET, {"clip_l": _clip(48)}),
    "sdxl": ("SDXL", _SDXL, {"clip_l": _clip(16), "clip_g": _clip(32)}),
    "flux": ("Flux", FLUX, {"clip_l": _clip(40), "t5xxl": _T5}),
}


def _randomise(module: torch.nn.Module) -> None:
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
        parameter.copy_(torch.randn(parameter.shape) * fan_in**-0.5)


def build(family: str) -> tuple[Any, Any]:
    """(ModelPatcher, CLIP) of a family, float32, loaded in inference mode as the host does."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.sd
    import comfy.sdxl_clip
    import comfy.supported_models
    import comfy.text_encoders.flux
    from comfy.sd1_clip import SD1ClipModel, SD1Tokenizer
    from comfy.supported_models_base import ClipTarget

    name, unet, encoders = FAMILIES[family]
    target = {
        "sd15": lambda: ClipTarget(SD1Tokenizer, SD1ClipModel),
        "sdxl": lambda: ClipTarget(comfy.sdxl_clip.SDXLTokenizer, comfy.sdxl_clip.SDXLClipModel),
        "flux": lambda: ClipTarget(
            comfy.text_encoders.flux.FluxTokenizer, comfy.text_encoders.flux.flux_clip(torch.float32)
        ),
    }[family]()
    device = torch.device("cpu")
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(comfy.supported_models, name)(dict(unet))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=device)
        _randomise(model)
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        options: dict[str, Any] = {f"{key}_model_config": values for key, values in encoders.items()}
        clip = comfy.sd.CLIP(target, model_options={**options, "dtype": torch.float32})
        _randomise(clip.cond_stage_model)
        comfy.model_management.load_models_gpu([patcher, clip.patcher])
    return patcher, clip


class Eye:
    """In place of a VAE: the same random latents for the same picture."""

    def __init__(self, channels: int) -> None:
        self.channels = channels

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        batch, height, width, _ = pixels.shape
        chance = torch.Generator().manual_seed(int(pixels.sum()))
        return torch.randn(batch, self.channels, height // 8, width // 8, generator=chance)

    def spacial_compression_encode(self) -> int:
        return 8


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each family's name in turn."""
    return str(request.param)


@pytest.fixture()
def small(comfy: Any) -> SimpleNamespace:
    """small.build(family) gives (model, clip); small.eye(model) a VAE."""
    return SimpleNamespace(build=build, eye=lambda model: Eye(model.model.latent_format.latent_channels))
