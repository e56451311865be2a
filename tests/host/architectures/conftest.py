"""Small random models of every family that the host draws pictures with, made by the host's own configurations."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.devtools.small_models import FLUX, UNET
from likeness.trainers.dataset import Picture

_SD2 = UNET | {"model_channels": 64, "num_heads": -1, "num_head_channels": 64}
_SDXL = _SD2 | {"adm_in_channels": 2816, "num_classes": "sequential"}
_SD3: dict[str, Any] = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "depth": 2,  # the width too, in heads of 64
    "num_patches": 64,
    "pos_embed_max_size": 8,
    "pos_embed_scaling_factor": None,
    "adm_in_channels": 40,
    "qk_norm": "rms",
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 48, "out_features": 128}},
}
_FLUX = FLUX | {"mlp_ratio": 4.0, "depth_single_blocks": 2}
_FLUX2 = _FLUX | {
    "image_model": "flux2",
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "vec_in_dim": None,
    "mlp_ratio": 3.0,
    "axes_dim": [8, 8, 8, 8],
    "theta": 2000,
    "qkv_bias": False,
    "global_modulation": True,
    "mlp_silu_act": True,
    "ops_bias": False,
    "default_ref_method": "index",
    "ref_index_scale": 10.0,
}
_CHROMA = {name: value for name, value in _FLUX.items() if name not in ("vec_in_dim", "guidance_embed")} | {
    "image_model": "chroma",
    "in_channels": 64,
    "out_channels": 64,
    "in_dim": 64,  # fixed by the model's code: 16 of time, 16 of guidance, 32 of which layer
    "out_dim": 64,
    "hidden_dim": 32,
    "n_layers": 1,
}
_LUMINA: dict[str, Any] = {
    "image_model": "lumina2",
    "patch_size": 2,
    "in_channels": 16,
    "dim": 64,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "cap_feat_dim": 48,
    "qk_norm": True,
    "n_heads": 2,
    "n_kv_heads": 1,
    "axes_dims": [8, 12, 12],
    "axes_lens": [64, 64, 64],
    "rope_theta": 10000.0,
    "ffn_dim_multiplier": 4.0,
    "multiple_of": 32,
}
_ZIMAGE = _LUMINA | {
    "dim": 256,
    "axes_dims": [32, 48, 48],
    "n_kv_heads": 2,
    "z_image_modulation": True,
    "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}
_QWEN: dict[str, Any] = {
    "image_model": "qwen_image",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 2,
    "joint_attention_dim": 48,
    "axes_dims_rope": (8, 12, 12),
}


@dataclass(frozen=True)
class Family:
    """A family in small.

    config: the host's class of it. unet: what it would have detected. predicts: the parameterisation. pooled: width of
    the pooled text.
    """

    config: str
    unet: dict[str, Any]
    predicts: str
    pooled: int = 1280


FAMILIES = {
    "sd15": Family("SD15", UNET, "eps"),
    "sd2": Family("SD20", _SD2, "eps"),
    "sd2-v": Family("SD20", _SD2, "v"),
    "sdxl": Family("SDXL", _SDXL, "eps"),
    "sdxl-v": Family("SDXL", _SDXL, "v"),
    "sd3": Family("SD3", _SD3, "flow", 40),
    "sd3.5-medium": Family("SD3", _SD3 | {"x_block_self_attn_layers": [0]}, "flow", 40),
    "flux": Family("Flux", _FLUX, "flow", 40),
    "flux-schnell": Family("FluxSchnell", _FLUX | {"guidance_embed": False}, "flow", 40),
    "flux2": Family("Flux2", _FLUX2, "flow"),
    "chroma": Family("Chroma", _CHROMA, "flow"),
    "lumina2": Family("Lumina2", _LUMINA, "flow"),
    "z-image": Family("ZImage", _ZIMAGE, "flow"),
    "qwen-image": Family("QwenImage", _QWEN, "flow"),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A loaded ModelPatcher of a small random model, made in inference mode as the host does.

    dtype: of the weights. Others than float32 are cast to it layer by layer, as UNETLoader's fp8 are to bf16.
    """
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    family = FAMILIES[name]
    config_class = getattr(comfy.supported_models, family.config, None)
    if config_class is None:
        pytest.skip(f"this ComfyUI has no {family.config}")
    device = torch.device("cpu")
    state = {"v_pred": torch.tensor([])} if name == "sdxl-v" else {}
    if name == "sd2-v":  # how the host tells SD2.1 768 from SD2.1 base
        state = {"output_blocks.11.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 8)}
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = config_class(dict(family.unet))
        config.set_inference_dtype(dtype, None if dtype == torch.float32 else torch.float32)
        model = config.get_model(state, "", device=device)
        for parameter in (*model.parameters(), *model.diffusion_model.buffers()):  # SD3's positions are a buffer
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
            parameter.copy_(torch.randn(parameter.shape) * fan_in**-0.5)
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        comfy.model_management.load_models_gpu([patcher])
    return patcher


def picture(
    crop: tuple[int, int] = (0, 0), original: tuple[int, int] = (640, 480), target: tuple[int, int] = (64, 64)
) -> Picture:
    """A black one."""
    return Picture(torch.zeros(*target, 3, dtype=torch.uint8), None, "", "", original, crop, target)


def latents_of(patcher: Any, count: int = 1) -> torch.Tensor:
    """Random ones of the shape that the family's VAE gives."""
    import comfy.sample

    channels = patcher.model.latent_format.latent_channels
    random = torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(5))
    latents: torch.Tensor = comfy.sample.fix_empty_latent_channels(patcher, random)
    return latents


def cond_of(name: str, patcher: Any, length: int = 8, seed: int = 0, of: Picture | None = None) -> Any:
    """The condition of a random caption of so many tokens: what stands in for text encoders of gigabytes."""
    from likeness.nodes.host.conditioning import detach_cond, make_cond, size_conditions

    chance = torch.Generator().manual_seed(seed)
    text = torch.randn(1, length, 48, generator=chance)
    conditioning = [[text, {"pooled_output": torch.randn(1, FAMILIES[name].pooled, generator=chance)}]]
    cond = make_cond(patcher, conditioning, latents_of(patcher), size_conditions(of or picture()))
    return detach_cond(cond, torch.device("cpu"))


class Words:
    """In place of a CLIP: a caption's random encoding, always the same, of the width that the small models take.

    The real ones of SD3, Flux and later are gigabytes; what a session asks of them is these two methods.
    """

    def __init__(self, width: int = 48, pooled: int = 1280, length: int = 8) -> None:
        self.width, self.pooled, self.length = width, pooled, length

    def tokenize(self, text: str, **options: Any) -> dict[str, Any]:
        return {"l": [[(ord(letter), 1.0) for letter in text]]}

    def encode_from_tokens_scheduled(self, tokens: dict[str, Any], **options: Any) -> list[list[Any]]:
        chance = torch.Generator().manual_seed(sum(token for token, _ in tokens["l"][0]))
        text = torch.randn(1, self.length, self.width, generator=chance)
        return [[text, {"pooled_output": torch.randn(1, self.pooled, generator=chance)}]]


class Eye:
    """In place of a VAE: random latents of so many channels, a `ratio` smaller than the picture."""

    def __init__(self, channels: int, ratio: int = 8) -> None:
        self.channels, self.ratio = channels, ratio

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        batch, height, width, _ = pixels.shape
        return torch.randn(batch, self.channels, height // self.ratio, width // self.ratio)

    def spacial_compression_encode(self) -> int:
        return self.ratio


@pytest.fixture(params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    """Each family's name in turn."""
    return str(request.param)


@pytest.fixture()
def kit(comfy: Any) -> SimpleNamespace:
    """The functions above: kit.build(name), kit.cond_of(name, patcher, …), kit.latents_of(patcher), …"""
    return SimpleNamespace(
        build=build,
        cond_of=cond_of,
        latents_of=latents_of,
        picture=picture,
        families=FAMILIES,
        Words=Words,
        Eye=Eye,
    )
