"""Every family of image models through the one Denoiser, against formulas written out here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.lora.keys import SCHEMES, from_deltas, to_deltas
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors
from likeness.trainers.config import TrainingConfig
from likeness.trainers.dataset import Example, TrainingSet
from likeness.trainers.loop import train
from likeness.trainers.outcome import Callbacks, TrainingResult


@contextmanager
def denoiser_of(patcher: Any) -> Iterator[Any]:
    """As the session has it."""
    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors

    with ordinary_tensors(), autograd_weights(patcher.model):
        yield HostDenoiser(patcher)


def trained(kit: SimpleNamespace, family: str, patcher: Any, folder: Path, **options: Any) -> TrainingResult:
    """Two steps on one random picture."""
    with denoiser_of(patcher) as denoiser:
        cond = kit.cond_of(family, patcher)
        data = TrainingSet((Example(kit.latents_of(patcher)[0], None, cond, None),), cond)
        config = TrainingConfig(**{"steps": 2, "rank": 2, "alpha": 2, "learning_rate": 1e-2, "seed": 3, **options})
        return train(denoiser, data, config, folder)


def test_prediction_is_the_closed_form_of_the_networks_output(
    kit: SimpleNamespace, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flow x₀ = x − σ v; ε x₀ = x − σ ε; v x₀ = x/(1+σ²) − σ v/√(1+σ²). Fails if a family got another's formula."""
    patcher = kit.build(family)
    outputs = []
    network = patcher.model.diffusion_model
    original = type(network).forward

    def noted(self: Any, *arguments: Any, **named: Any) -> Any:
        outputs.append(original(self, *arguments, **named))
        return outputs[-1]

    monkeypatch.setattr(type(network), "forward", noted)
    with denoiser_of(patcher) as denoiser, torch.no_grad():
        assert denoiser.parameterisation == kit.families[family].predicts
        x, sigma = kit.latents_of(patcher, 2), denoiser.sigmas[[len(denoiser.sigmas) // 3, -2]]
        x0 = denoiser.denoise(x, sigma, [kit.cond_of(family, patcher)] * 2)
    (out,) = outputs
    s = sigma.view(2, *[1] * (x.ndim - 1))
    expected = {"flow": x - s * out, "eps": x - s * out, "v": x / (1 + s**2) - s * out / (1 + s**2).sqrt()}
    torch.testing.assert_close(x0, expected[denoiser.parameterisation], atol=1e-4, rtol=1e-4)
    assert float(out.std()) > 1e-3, "the network gives nothing, so that nothing was compared"


def test_noise_levels_are_the_familys_own(kit: SimpleNamespace, family: str) -> None:
    """SD: √(1/ᾱ − 1) of the scaled-linear β's; flow: i/N, shifted. Fails if a model were trained on other levels."""
    patcher = kit.build(family)
    with denoiser_of(patcher) as denoiser:
        sigmas = denoiser.sigmas.double()
        if denoiser.parameterisation == "flow":
            u = torch.arange(1, len(sigmas) + 1, dtype=torch.float64) / len(sigmas)
            linear = {"sd3": 3.0, "sd3.5-medium": 3.0, "lumina2": 6.0, "z-image": 3.0, "flux-schnell": 1.0}
            exponential = {"flux": 1.15, "flux2": 2.02, "chroma": 1.15, "qwen-image": 1.15}
            if family in linear:  # Esser et al. 2024, equation 23
                expected = linear[family] * u / (1 + (linear[family] - 1) * u)
            else:  # Flux: e^μ / (e^μ + (1/u − 1))
                shift = torch.tensor(exponential[family], dtype=torch.float64).exp()
                expected = shift / (shift + (1 / u - 1))
        else:
            betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
            expected = (1 / (1 - betas).cumprod(0) - 1).sqrt()
        torch.testing.assert_close(sigmas, expected, atol=1e-5, rtol=1e-4)
        latents, noise = kit.latents_of(patcher), torch.ones_like(kit.latents_of(patcher))
        level = denoiser.sigmas[len(sigmas) // 2]
        keep = 1 - level if denoiser.parameterisation == "flow" else 1.0
        torch.testing.assert_close(
            denoiser.noise_scaling(level.view(1), noise, latents), keep * latents + level * noise
        )


UNUSED = {"qwen-image": ("blocks.1.attn.to_add_out", "blocks.1.attn.add_q_proj")}
"""Qwen-Image's last block computes what becomes of the text, and nobody reads it."""


@pytest.mark.parametrize("recomputed", [False, True])
def test_it_trains(kit: SimpleNamespace, family: str, tmp_path: Path, recomputed: bool) -> None:
    """Fails if a layer of the attention gets no gradient in some family, or checkpointing changes what is learnt."""
    patcher = kit.build(family)
    result = trained(kit, family, patcher, tmp_path / "run", gradient_checkpointing=recomputed)
    still = [name for name, delta in result.deltas.items() if not delta.up.any()]
    assert [name for name in still if not name.endswith(UNUSED.get(family, ()))] == []
    if recomputed:
        plain = trained(kit, family, kit.build(family), tmp_path / "plain")
        assert all(torch.allclose(plain.deltas[n].up, d.up, atol=1e-5) for n, d in result.deltas.items())


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_an_fp8_base_trains(kit: SimpleNamespace, family: str, tmp_path: Path) -> None:
    """As UNETLoader loads it with weight_dtype fp8_e4m3fn. Fails if a layer's adapter took the weights' dtype, in which
    nothing can be learnt, or the weights were changed."""
    patcher = kit.build(family, torch.float8_e4m3fn)
    network = patcher.model.diffusion_model
    before = {name: weight.view(torch.uint8).clone() for name, weight in network.named_parameters()}
    assert {weight.dtype for weight in network.parameters()} == {torch.float8_e4m3fn}
    result = trained(kit, family, patcher, tmp_path / "run", gradient_checkpointing=True)
    assert all(bool(delta.up.any()) and bool(delta.up.isfinite().all()) for delta in result.deltas.values())
    assert all(torch.equal(weight.view(torch.uint8), before[name]) for name, weight in network.named_parameters())


def test_cancel_inside_a_recomputed_block(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host cancels in the middle of a layer; the step is done again. Fails if what autograd noted of the first try
    stays, so that the step differs from an unbroken one."""
    import comfy.ldm.flux.layers
    import comfy.model_management

    whole = trained(kit, "flux", kit.build("flux"), tmp_path / "whole", gradient_checkpointing=True)
    original, calls = comfy.ldm.flux.layers.SingleStreamBlock.forward, []

    def cancelled(self: Any, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise comfy.model_management.InterruptProcessingException()
        return original(self, *arguments, **named)

    monkeypatch.setattr(comfy.ldm.flux.layers.SingleStreamBlock, "forward", cancelled)
    broken = trained(kit, "flux", kit.build("flux"), tmp_path / "broken", gradient_checkpointing=True)
    assert len(calls) > 4
    assert all(torch.equal(broken.deltas[name].up, delta.up) for name, delta in whole.deltas.items())


def layers_of(patcher: Any) -> dict[str, tuple[int, ...]]:
    """Every matrix and convolution of the model, by canonical name."""
    state = patcher.model.state_dict()
    found = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in state.items()}
    return {n: s for n, s in found.items() if f"{n}.weight" in state and len(s) in (2, 4)}


NO_DIFFUSERS = ("flux2", "lumina2")
"""Families of which some layers have no diffusers names that this host reads."""


@pytest.mark.parametrize("naming", SCHEMES)
def test_the_host_applies_what_was_learnt(
    kit: SimpleNamespace, family: str, naming: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Saved, read by the host's loader, applied: fails if one key is unmatched, or the model then predicts anything
    else than the adapted model did while it was trained."""
    import comfy.sd
    import comfy.utils

    patcher = kit.build(family)
    seen = []
    with denoiser_of(patcher) as denoiser:
        cond = kit.cond_of(family, patcher)
        x, sigma = kit.latents_of(patcher), denoiser.sigmas[len(denoiser.sigmas) // 2].view(1)

        def look(step: int) -> None:
            seen.append(denoiser.denoise(x, sigma, [cond]))

        data = TrainingSet((Example(kit.latents_of(patcher)[0], None, cond, None),), cond)
        config = TrainingConfig(steps=2, rank=2, alpha=2, learning_rate=0.05, seed=3, sample_every=2)
        result = train(denoiser, data, config, tmp_path / "run", Callbacks(sample=look))
        with torch.no_grad():
            before = denoiser.denoise(x, sigma, [cond])
    path = tmp_path / "lora.safetensors"
    blocks = kit.families[family].unet.get("num_res_blocks")
    lora = LoraTensors(from_deltas(result.deltas), {"likeness.res_blocks": str(blocks)} if blocks else {})
    if naming == "diffusers" and family in NO_DIFFUSERS:
        with pytest.raises(ValueError, match="naming diffusers"):
            save_lora(path, lora, naming, "fp32")
        return
    save_lora(path, lora, naming, "fp32")
    assert set(to_deltas(load_lora(path, layers_of(patcher)))) == set(result.deltas)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        patched, _ = comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(str(path)), 1.0, 0.0)
        assert "key not loaded" not in caplog.text
        comfy.model_management.load_models_gpu([patched])
    with denoiser_of(patched) as denoiser, torch.no_grad():
        after = denoiser.denoise(x, sigma, [cond])
    change = (seen[-1] - before).abs().max()
    assert float(change) > 1e-3
    assert float((after - seen[-1]).abs().max()) < 1e-3 * float(change) + 1e-5
