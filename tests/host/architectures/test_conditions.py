"""What reaches the model beside the noisy picture, and the noise levels that nodes put in the model's place."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensor

from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import load_folder


def embedded(value: int) -> torch.Tensor:
    """A number as SDXL's network takes it: 128 cosines and 128 sines of falling frequency."""
    angles = value * torch.exp(-math.log(10_000) * torch.arange(128, dtype=torch.float64) / 128)
    return torch.cat([angles.cos(), angles.sin()])


@pytest.mark.parametrize("dropout", [0.0, 1.0], ids=["captions", "empty captions"])
def test_sdxl_is_told_each_pictures_size_crop_and_bucket(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dropout: float
) -> None:
    """As the training node does it, from files: fails if one of the six numbers is missing or is another picture's.

    The empty caption stands for a picture, too, and what is kept of the class as well.
    """
    from likeness.nodes.host import train_lora
    from likeness.nodes.types import CLASS_PICTURES, Prior

    patcher = kit.build("sdxl")
    sizes = {"wide": (300, 100), "square": (80, 80), "tall": (96, 160)}  # (width, height)
    for name, size in sizes.items():
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    pictures = load_folder(tmp_path, trigger="sks", class_noun="toy", resolution=64)
    assert len({picture.target_size for picture in pictures.pictures}) == 3 and pictures.pictures[2].crop != (0, 0)

    seen: list[torch.Tensor] = []
    network = type(patcher.model.diffusion_model)
    original = network.forward

    def noted(self: Any, x: torch.Tensor, *arguments: Any, **named: Any) -> Any:
        if not isinstance(x, FakeTensor):  # the memory estimate, before the first step
            seen.append((tuple(x.shape[-2:]), named["y"].detach()))
        return original(self, x, *arguments, **named)

    monkeypatch.setattr(network, "forward", noted)
    words = kit.Words()
    config = TrainingConfig(steps=6, rank=2, alpha=2, caption_dropout=dropout)
    kept = Prior(CLASS_PICTURES, 1.0, (), 0, 0, 1, 1.0, "euler", "normal", pictures)
    train_lora(patcher, words, kit.Eye(4), pictures, config, prior=kept)
    assert len({shape for shape, _ in seen}) == 3
    for shape, y in seen:
        (picture,) = (p for p in pictures.pictures if tuple(side // 8 for side in p.target_size) == shape)
        caption = "" if dropout else picture.caption
        pooled = words.encode_from_tokens_scheduled(words.tokenize(caption))[0][1]["pooled_output"]
        numbers = (*picture.original_size, *picture.crop, *picture.target_size)
        expected = torch.cat([embedded(number) for number in numbers]).float()
        assert len(y) == 2
        for one in y:  # the picture's, and the class picture's beside it
            torch.testing.assert_close(one[:1280], pooled[0])
            torch.testing.assert_close(one[1280:], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("family", "guidance"), [("flux", 1.0), ("flux2", 1.0), ("chroma", 0.0), ("sd3", None)])
def test_guidance(kit: SimpleNamespace, family: str, guidance: float | None) -> None:
    """Flux learns at guidance 1, Chroma at the 0 that it was made with: fails if one got the other's."""
    conds = kit.cond_of(family, kit.build(family)).model_conds
    assert ("guidance" in conds) == (guidance is not None)
    if guidance is not None:
        assert conds["guidance"].cond.tolist() == [guidance]


def replaced(kit: SimpleNamespace, family: str, node: str, **inputs: Any) -> Any:
    """A HostDenoiser of the model that a node of the host has given other sampling."""
    import comfy.model_management
    import comfy_extras.nodes_model_advanced as advanced

    from likeness.nodes.host import HostDenoiser

    patcher = kit.build(family)
    with torch.inference_mode():
        (patched,) = getattr(advanced, node)().patch(patcher, **inputs)
        comfy.model_management.load_models_gpu([patched])
    return HostDenoiser(patched)


@pytest.mark.parametrize("family", ["sd3", "z-image"])
def test_shift_of_a_node_is_that_of_training(kit: SimpleNamespace, family: str) -> None:
    """ModelSamplingSD3 with c: σ = c u / (1 + (c−1) u). Fails if training kept the shift that the model came with."""
    denoiser = replaced(kit, family, "ModelSamplingSD3", shift=5.0)
    u = torch.arange(1, 1001) / 1000
    assert denoiser.parameterisation == "flow"
    torch.testing.assert_close(denoiser.sigmas, 5 * u / (1 + 4 * u), atol=1e-5, rtol=1e-4)


def test_flux_shift_by_resolution(kit: SimpleNamespace) -> None:
    """ModelSamplingFlux at 1024×1024 is its max_shift, e^μ/(e^μ + 1/u − 1). Fails if Flux ignored the node."""
    inputs = {"max_shift": 1.3, "base_shift": 0.5, "width": 1024, "height": 1024}
    denoiser = replaced(kit, "flux", "ModelSamplingFlux", **inputs)
    u = torch.arange(1, len(denoiser.sigmas) + 1) / len(denoiser.sigmas)
    torch.testing.assert_close(denoiser.sigmas, math.exp(1.3) / (math.exp(1.3) + 1 / u - 1), atol=1e-5, rtol=1e-4)


def test_a_node_that_makes_it_predict_v(kit: SimpleNamespace) -> None:
    """ModelSamplingDiscrete (v, zero terminal SNR): fails if the loss stayed that of ε, which would teach nonsense."""
    denoiser = replaced(kit, "sdxl", "ModelSamplingDiscrete", sampling="v_prediction", zsnr=True)
    assert denoiser.parameterisation == "v"
    assert float(denoiser.sigmas[-1]) > 1000  # no signal left at the end


@pytest.mark.parametrize("family", ["sd3", "flux", "z-image", "qwen-image"])
def test_the_whole_session(kit: SimpleNamespace, family: str) -> None:
    """Pictures of two shapes in, a LoRA out, by what the training node calls: fails if a family's latents (Qwen-Image's
    have a time axis) or conditions do not go through."""
    from likeness.nodes.host import train_lora
    from likeness.trainers.dataset import PictureSet

    patcher = kit.build(family)
    mask = torch.zeros(64, 64)
    mask[:32] = 1
    pictures = (replace(kit.picture(), mask=mask), kit.picture(target=(64, 96)))
    settings = kit.families[family]
    trained = train_lora(
        patcher,
        kit.Words(pooled=settings.pooled),
        kit.Eye(patcher.model.latent_format.latent_channels),
        PictureSet(pictures, 1, True, "sks", "toy"),
        TrainingConfig(steps=3, rank=2, alpha=2, caption_dropout=0.5),
    )
    ups = [tensor for name, tensor in trained.lora.items() if name.endswith("lora_up.weight")]
    still = sum(not up.any() for up in ups)  # Qwen-Image's last block computes a text that nobody reads
    assert len(ups) > 4 and still == (2 if family == "qwen-image" else 0)
    assert all(bool(up.isfinite().all()) for up in ups)
    assert (trained.folder / f"{trained.folder.name}.safetensors").is_file()
