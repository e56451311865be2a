"""The real sizes: checkpoints of full width in random weights, from the file through training to the file of the LoRA.

Text encoders (SD3's and Flux's are 5 to 10 GB) are stood in for by random conditions of their real widths. What the
host's CheckpointLoaderSimple, UNETLoader and LoraLoader call is called here, in this process: a server on a CPU would
make float32 of the weights, twice the memory. SD1.5 goes through a server too, in tests/host/training.
"""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.devtools import random_checkpoints
from likeness.lora.keys import SCHEMES, from_deltas, to_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors
from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import Example, TrainingSet
from likeness.trainers.loop import train
from likeness.trainers.outcome import Callbacks, TrainingResult

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "use_spatial_transformer": True,
    "legacy": False,
    "num_heads": -1,
    "num_head_channels": 64,
}
SD1: dict[str, Any] = {
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": (1, 2, 4, 4),
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    "transformer_depth_middle": 1,
}
UNETS = {
    "sd2": UNET | SD1 | {"context_dim": 1024, "use_linear_in_transformer": True},
    "sdxl": UNET
    | {
        "num_res_blocks": [2, 2, 2],
        "channel_mult": (1, 2, 4),
        "transformer_depth": [0, 0, 2, 2, 10, 10],
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
        "transformer_depth_middle": 10,
        "context_dim": 2048,
        "use_linear_in_transformer": True,
        "num_classes": "sequential",
        "adm_in_channels": 2816,
    },
}
SD3 = {
    "input_size": None,
    "patch_size": 2,
    "in_channels": 16,
    "depth": 24,
    "num_patches": 192 * 192,
    "pos_embed_max_size": 192,
    "adm_in_channels": 2048,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 1536}},
}
FLUX = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
}
TEXT = {"sd2": (1024, 0), "sdxl": (2048, 1280), "sd3": (4096, 2048), "flux": (4096, 768)}
"""Widths of the text and of its pooled form."""

LAYERS = {"sd2": 16 * 8, "sdxl": 70 * 8, "sd3": 24 * 4 - 1, "flux": 4 + 2}
"""Layers of the attention: q, k, v and out of two attentions a transformer block; SD3's qkv and out of picture and text
(the last block has no out for its text); Flux's the same, and linear1 of two single blocks."""

EXACT = ("sd2", "flux")
"""Computed in float32 from bf16 weights. The others, two and three times as large, in bf16: half the time."""


def network(architecture: str, **more: Any) -> torch.nn.Module:
    """The host's network without weights. Flux with one double and two single blocks, which its detection counts."""
    import comfy.ldm.flux.model
    import comfy.ldm.modules.diffusionmodules.mmdit as mmdit
    import comfy.ldm.modules.diffusionmodules.openaimodel as unet
    import comfy.ops

    options = {"device": "meta", "dtype": torch.bfloat16, "operations": comfy.ops.disable_weight_init}
    if architecture == "sd3":
        return mmdit.OpenAISignatureMMDITWrapper(**SD3, **options)
    if architecture == "flux":
        return comfy.ldm.flux.model.Flux(**FLUX, **{"depth": 1, "depth_single_blocks": 2} | more, **options)
    return unet.UNetModel(**UNETS[architecture], **options)


@pytest.mark.parametrize(
    ("architecture", "count"), [("sd2", 865_910_724), ("sdxl", 2_567_463_684), ("flux", 11_901_408_320)]
)
def test_these_are_the_real_networks(comfy: Any, architecture: str, count: int) -> None:
    """Fails if what the other test trains were not as wide as the published models are: their numbers of weights."""
    whole = network(architecture, depth=19, depth_single_blocks=38) if architecture == "flux" else network(architecture)
    assert sum(parameter.numel() for parameter in whole.parameters()) == count


@pytest.fixture(params=["sd2", "sdxl", "sd3", "flux"])
def loaded(request: pytest.FixtureRequest, comfy: SimpleNamespace, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """(architecture, MODEL) from a file that is written for this test alone. One is in memory at a time."""
    import comfy.model_management
    import comfy.sd

    architecture: str = request.param
    single = architecture in ("sd3", "flux")  # a file of the diffusion model alone
    prefix = "" if single else "model.diffusion_model."
    shapes = {prefix + name: tuple(tensor.shape) for name, tensor in network(architecture).state_dict().items()}
    fixed = {}
    if architecture == "sd2":  # how the host tells SD2.1 768, which predicts v, from SD2.1 base
        name = f"{prefix}output_blocks.11.1.transformer_blocks.0.norm1.bias"
        fixed[name] = torch.linspace(-0.2, 0.2, 320)
    path = tmp_path / f"{architecture}.safetensors"
    try:
        random_checkpoints.write(path, shapes, fixed)
        options = {"dtype": torch.bfloat16}
        with torch.inference_mode():
            if single:
                model = comfy.sd.load_diffusion_model(str(path), model_options=options)
            else:
                model = comfy.sd.load_checkpoint_guess_config(str(path), model_options=options)[0]
        if architecture not in EXACT:
            model.set_model_compute_dtype(torch.bfloat16)
        yield architecture, model
    finally:
        path.unlink(missing_ok=True)
        comfy.model_management.unload_all_models()
        gc.collect()


def learn(architecture: str, model: Any, folder: Path) -> tuple[TrainingResult, Any, torch.Tensor, torch.Tensor]:
    """Two steps as the session takes them: what was learnt, the condition, the adapted prediction and the base's."""
    import comfy.model_management

    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors
    from likeness.nodes.host.conditioning import detach_cond, make_cond, size_conditions
    from likeness.trainers.dataset import Picture

    width, pooled = TEXT[architecture]
    chance = torch.Generator().manual_seed(2)
    latents = torch.randn(1, model.model.latent_format.latent_channels, 8, 8, generator=chance)
    words = [[torch.randn(1, 16, width, generator=chance), {"pooled_output": torch.randn(1, pooled, generator=chance)}]]
    sizes = size_conditions(Picture(torch.zeros(64, 64, 3), None, "", "", (640, 480), (0, 8), (64, 64)))
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([model])
        made = make_cond(model, words, latents, sizes)
    with ordinary_tensors(), autograd_weights(model.model):
        denoiser, cond = HostDenoiser(model), detach_cond(made, torch.device("cpu"))
        sigma, seen = denoiser.sigmas[len(denoiser.sigmas) // 2].view(1), []

        def look(step: int) -> None:
            seen.append(denoiser.denoise(latents, sigma, [cond]))

        with torch.no_grad():
            look(0)
        data = TrainingSet((Example(latents[0], None, cond, None),), cond)
        config = TrainingConfig(
            steps=2, rank=2, alpha=2, learning_rate=0.1, gradient_checkpointing=True, sample_every=2
        )
        return train(denoiser, data, config, folder, Callbacks(sample=look)), cond, seen[1], seen[0]


def test_it_trains_and_every_naming_loads_in_the_host(
    loaded: tuple[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails if a layer of a real model learns nothing, its name is unknown to the host in one of the three namings, or
    the host's LoRA is not what was trained."""
    import comfy.lora
    import comfy.model_management
    import comfy.sd
    import comfy.utils

    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors

    architecture, model = loaded
    result, cond, adapted, plain = learn(architecture, model, tmp_path / "run")
    assert len(result.deltas) == LAYERS[architecture]
    assert all(bool(delta.up.any()) for delta in result.deltas.values())
    change = (adapted - plain).abs().mean()
    assert float(change) > 0.01 * float(plain.abs().mean())

    shapes = {name.removesuffix(".weight"): tuple(t.shape) for name, t in model.model.state_dict().items()}
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    blocks = model.model.model_config.unet_config.get("num_res_blocks")
    lora = LoraTensors(from_deltas(result.deltas), {"likeness.res_blocks": str(list(blocks))} if blocks else {})
    some = list(result.deltas)[:: max(1, len(result.deltas) // 8)]
    with caplog.at_level(logging.WARNING):
        for naming in SCHEMES:
            path = tmp_path / f"{naming}.safetensors"
            save_lora(path, lora, naming, "fp32")
            assert set(to_deltas(load_lora(path, shapes))) == set(result.deltas)
            found: dict[str, list[Any]] = {}
            for target, patch in comfy.lora.load_lora(comfy.utils.load_torch_file(str(path)), keys).items():
                name, offset, function = (target, None, None) if isinstance(target, str) else (*target, None)[:3]
                found.setdefault(name.removesuffix(".weight"), []).append((1.0, patch, 1.0, offset, function))
            assert set(found) == set(result.deltas)
            for layer in some:
                weight = comfy.lora.calculate_weight(found[layer], torch.zeros(shapes[layer]), layer)
                dense = result.deltas[layer].dense().reshape(shapes[layer])
                torch.testing.assert_close(weight, dense, atol=1e-5, rtol=1e-4)
        with torch.inference_mode():
            tensors = comfy.utils.load_torch_file(str(tmp_path / "kohya.safetensors"))
            patched, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)
            comfy.model_management.load_models_gpu([patched])
    told = [
        line for line in caplog.messages if re.search("key not loaded|calculate weight failed|mismatch", line, re.I)
    ]
    assert told == []
    chance = torch.Generator().manual_seed(2)
    latents = torch.randn(1, model.model.latent_format.latent_channels, 8, 8, generator=chance)
    with ordinary_tensors(), autograd_weights(patched.model), torch.no_grad():
        denoiser = HostDenoiser(patched)
        sigma = denoiser.sigmas[len(denoiser.sigmas) // 2].view(1)
        error = (denoiser.denoise(latents, sigma, [cond]) - adapted).abs().mean()
    # The host rounds W + ΔW to the weights' bf16, which training does not. In float32 0.2% was seen.
    assert float(error) < (0.03 if architecture in EXACT else 0.15) * float(change)
