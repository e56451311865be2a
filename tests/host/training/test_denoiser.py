"""HostDenoiser against formulas written out here, for the families that differ in what they are conditioned on."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.devtools import small_models
from likeness.trainers.dataset import Picture
from likeness.trainers.rebinding import Rebinding
from likeness.trainers.recompute import recomputed_blocks

UNET = {**small_models.UNET, "dtype": torch.float32}
SDXL = {
    **UNET,
    "model_channels": 64,
    "num_heads": -1,
    "num_head_channels": 64,
    "adm_in_channels": 2816,
    "num_classes": "sequential",
}
FLUX = {**small_models.FLUX, "dtype": torch.float32}


def build(family: str) -> Any:
    """A loaded ModelPatcher of a small random model of a family."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    config_class, unet = {
        "sd15": (comfy.supported_models.SD15, UNET),
        "sdxl": (comfy.supported_models.SDXL, SDXL),
        "flux": (comfy.supported_models.Flux, FLUX),
    }[family]
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(0)
        config = config_class(dict(unet))
        config.set_inference_dtype(torch.float32, None)
        model = config.get_model({}, "", device=torch.device("cpu"))
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.05)
        device = torch.device("cpu")
        patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
        comfy.model_management.load_models_gpu([patcher])
    return patcher


def cond_of(patcher: Any, length: int = 8, seed: int = 0, crop: tuple[int, int] = (0, 0)) -> Any:
    """The condition of a caption of so many tokens."""
    from likeness.nodes.host.conditioning import detach_cond, make_cond, size_conditions

    chance = torch.Generator().manual_seed(seed)
    picture = Picture(torch.zeros(64, 64, 3, dtype=torch.uint8), None, "", "", (640, 480), crop, (64, 64))
    pooled = 40 if "Flux" in type(patcher.model).__name__ else 1280
    text = torch.randn(1, length, 48, generator=chance)
    conditioning = [[text, {"pooled_output": torch.randn(1, pooled, generator=chance)}]]
    channels = patcher.model.latent_format.latent_channels
    cond = make_cond(patcher, conditioning, torch.zeros(1, channels, 8, 8), size_conditions(picture))
    return detach_cond(cond, torch.device("cpu"))


def latents_of(patcher: Any, count: int) -> torch.Tensor:
    channels = patcher.model.latent_format.latent_channels
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", ["sd15", "sdxl", "flux"])
def test_batches_gradients_and_long_captions(comfy: SimpleNamespace, family: str) -> None:
    """A batch of captions of 8, 11 and 16 tokens gives what each gives alone: fails if conditions are mixed up."""
    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors

    patcher = build(family)
    with ordinary_tensors(), autograd_weights(patcher.model):
        denoiser = HostDenoiser(patcher)
        noisy, sigma = latents_of(patcher, 3), torch.tensor([0.9, 0.3, 0.6])
        conds = [cond_of(patcher, length, seed) for seed, length in enumerate((8, 11, 16))]
        together = denoiser.denoise(noisy, sigma, conds)
        assert together.dtype == torch.float32 and together.shape == noisy.shape
        for index in range(3):
            alone = denoiser.denoise(noisy[index : index + 1], sigma[index : index + 1], conds[index : index + 1])
            torch.testing.assert_close(together[index : index + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_gradient_is_that_of_finite_differences(comfy: SimpleNamespace, family: str, recomputed: bool) -> None:
    """As the loop takes it. Fails if autograd is handed a tensor that the model changed afterwards (Flux's blocks do).

    It is taken through weights that the host made in inference mode, with and without gradient checkpointing.
    """
    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors

    patcher = build(family)
    module = patcher.model.diffusion_model
    with ordinary_tensors(), autograd_weights(patcher.model):
        denoiser, conds, sigma = HostDenoiser(patcher), [cond_of(patcher)], torch.tensor([0.7])
        noisy = latents_of(patcher, 1).requires_grad_()
        weight = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(3))
        direction = torch.randn(noisy.shape, generator=torch.Generator().manual_seed(4))

        def loss(x: torch.Tensor) -> torch.Tensor:
            return (denoiser.denoise(x, sigma, conds) * weight).sum()

        with recomputed_blocks(module) if recomputed else nullcontext():
            with Rebinding():
                value = loss(noisy)
            value.backward()
        with torch.no_grad():
            slope = (loss(noisy + 1e-2 * direction) - loss(noisy - 1e-2 * direction)).double() / 2e-2
        assert noisy.grad is not None
        assert float((noisy.grad * direction).sum()) == pytest.approx(float(slope), rel=0.01)


def test_eps_model(comfy: SimpleNamespace) -> None:
    """x₀ = x − σ ε(x/√(σ²+1), t): fails if σ, the scaling of the input or the timestep is another one."""
    from likeness.nodes.host import HostDenoiser

    patcher = build("sd15")
    denoiser = HostDenoiser(patcher)
    assert denoiser.parameterisation == "eps"
    step = 417
    sigma = denoiser.sigmas[step : step + 1]
    noisy, cond = latents_of(patcher, 1), cond_of(patcher)
    with torch.no_grad():
        context = cond.model_conds["c_crossattn"].cond
        eps = patcher.model.diffusion_model(noisy / (sigma**2 + 1) ** 0.5, torch.tensor([float(step)]), context=context)
        torch.testing.assert_close(denoiser.denoise(noisy, sigma, [cond]), noisy - sigma * eps)
    noise = torch.ones_like(noisy)
    torch.testing.assert_close(denoiser.noise_scaling(sigma, noise, noisy), noisy + sigma * noise)
    assert bool((noise == 1).all()), "the caller's noise was written to"


def test_flow_model(comfy: SimpleNamespace) -> None:
    """x = (1−σ)x₀ + σn, and a guidance of 1: fails if Flux would be trained with the guidance it is used with."""
    from likeness.nodes.host import HostDenoiser

    patcher = build("flux")
    denoiser = HostDenoiser(patcher)
    assert denoiser.parameterisation == "flow"
    assert bool((denoiser.sigmas.diff() > 0).all()) and denoiser.sigmas[0] > 0 and denoiser.sigmas[-1] <= 1
    latents, sigma = latents_of(patcher, 2), torch.tensor([0.25, 0.5])
    noise = torch.ones_like(latents)
    expected = (1 - sigma.view(2, 1, 1, 1)) * latents + sigma.view(2, 1, 1, 1)
    torch.testing.assert_close(denoiser.noise_scaling(sigma, noise, latents), expected)
    assert float(cond_of(patcher).model_conds["guidance"].cond) == 1.0


def test_sdxl_sees_size_and_crop(comfy: SimpleNamespace) -> None:
    """Fails if the picture's crop does not reach the model, where SDXL has it: the middle two of six numbers."""
    patcher = build("sdxl")
    plain, cropped = (cond_of(patcher, crop=crop).model_conds["y"].cond[0, 1280:] for crop in ((0, 0), (0, 32)))
    same = (plain == cropped).view(6, 256).all(1).tolist()
    assert same == [True, True, True, False, True, True]  # height, width, crop top, crop left, target height, width


def test_models_of_unknown_loss_are_refused(comfy: SimpleNamespace) -> None:
    """Fails if a model is trained with a loss that is not its own; v and flow must be known by class."""
    import comfy.model_sampling as known

    from likeness.nodes.host.denoiser import parameterisation

    def sampling(kind: type, schedule: type) -> Any:
        return type("ModelSampling", (schedule, kind), {})()

    assert parameterisation(sampling(known.V_PREDICTION, known.ModelSamplingDiscrete)) == "v"
    assert parameterisation(sampling(known.CONST, known.ModelSamplingDiscreteFlow)) == "flow"
    with pytest.raises(ValueError, match="IMG_TO_IMG"):
        parameterisation(sampling(known.IMG_TO_IMG, known.ModelSamplingDiscrete))
