from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from likeness.trainers.lora import injected
from likeness.trainers.objectives import diffusion_loss
from likeness.trainers.targets import PREFIX, matched_layers


def loss_of(denoiser: Any, sigma: torch.Tensor, x0: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    noisy = denoiser.noise_scaling(sigma, noise, x0)
    return diffusion_loss(denoiser.denoise(noisy, sigma, [1.0, 2.0]), x0, sigma, denoiser.parameterisation)


@pytest.mark.parametrize("kind", ["eps", "v", "flow"])
def test_gradient_is_the_finite_difference(kind: str, toy: Any) -> None:
    """Fails if the gradient of the loss with regard to any factor (linear or conv) is wrong, in double precision."""
    denoiser = toy(kind, torch.float64)
    chance = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 4, 3, 3, generator=chance, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.2, 0.8], dtype=torch.float64)
    layers = matched_layers({PREFIX: denoiser.module}, "all")
    with injected({PREFIX: denoiser.module}, layers, rank=2, alpha=3.0, seed=1, dtype=torch.float64) as adapters:
        for factor in adapters.parameters():
            factor.data += 0.3 * torch.randn(factor.shape, generator=chance, dtype=torch.float64)
        loss_of(denoiser, sigma, x0, noise).backward()
        for factor in adapters.parameters():
            direction = torch.randn(factor.shape, generator=chance, dtype=torch.float64)
            assert factor.grad is not None
            slope = float((factor.grad * direction).sum())
            losses = []
            for side in (1e-5, -2e-5):
                factor.data += side * direction
                losses.append(loss_of(denoiser, sigma, x0, noise).item())
            factor.data += 1e-5 * direction
            assert slope == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5, abs=1e-9)


def test_delta_is_what_the_branch_adds(toy: Any) -> None:
    """Fails if the exported ΔW, added to the weights, gives another output than the adapters in place (scale, conv)."""
    denoiser, plain = toy(dtype=torch.float64), toy(dtype=torch.float64)
    x, sigma = torch.randn(2, 4, 5, 5), torch.tensor([0.5, 2.0])
    with injected(
        {PREFIX: denoiser.module}, matched_layers({PREFIX: denoiser.module}, "all"), rank=3, alpha=1.5, seed=0
    ) as adapters:
        for factor in adapters.parameters():
            factor.data += 0.2 * torch.randn(factor.shape)
        with torch.no_grad():
            adapted = denoiser.denoise(x, sigma, [1.0, 2.0])
        deltas = adapters.deltas()
    assert len(deltas) == len(matched_layers({PREFIX: plain.module}, "all"))
    with torch.no_grad():
        for name, delta in deltas.items():
            plain.module.get_submodule(name.removeprefix(PREFIX)).weight += delta.dense()
        assert torch.allclose(plain.denoise(x, sigma, [1.0, 2.0]), adapted, atol=1e-5)
        assert not torch.allclose(denoiser.denoise(x, sigma, [1.0, 2.0]), adapted, atol=1e-2)


def test_init_is_seeded_a_layer_at_a_time(toy: Any) -> None:
    """Fails if up is not zero, down is not Kaiming's, or a layer's init depends on which others are adapted."""
    seen: dict[str, dict[str, torch.Tensor]] = {}
    for targets in ("attention", "all"):
        module = toy().module
        with injected(
            {PREFIX: module}, matched_layers({PREFIX: module}, targets), rank=64, alpha=1.0, seed=3
        ) as adapters:
            seen[targets] = {name: down.detach().clone() for name, down, _ in adapters.factors()}
            assert all(not up.any() for _, _, up in adapters.factors())
    for name, down in seen["attention"].items():
        assert torch.equal(down, seen["all"][name])
        assert 0.9 / 4**0.5 < float(down.abs().max()) <= 1 / 4**0.5  # U(±1/√fan_in), fan_in 4
    assert len({down.sum().item() for down in seen["all"].values()}) == len(seen["all"])
    conv = seen["all"]["diffusion_model.transformer_blocks.0.conv"]
    assert conv.shape == (64, 4, 3, 3) and float(conv.abs().max()) <= 1 / 36**0.5


def test_only_the_named_layers_are_adapted(toy: Any) -> None:
    """Fails if a name is taken for a suffix or a pattern of other layers' names."""
    module = toy().module
    module.add_module("0", torch.nn.Linear(4, 4))  # also the last part of "…ff.0"
    with injected({PREFIX: module}, ["diffusion_model.0"], rank=1, alpha=1.0, seed=0):
        adapted = [name for name, _ in module.named_modules() if name.endswith("lora_A")]
        assert adapted == ["0.lora_A"]


def test_adapters_go_where_the_computation_is() -> None:
    """Fails if an adapter follows its base weight: in a partly loaded model that is another device. (No second device
    here, so one without data stands for it.)"""
    module = nn.Sequential(nn.Linear(4, 4))
    with injected(
        {PREFIX: module}, ["diffusion_model.0"], rank=1, alpha=1.0, seed=0, device=torch.device("meta")
    ) as adapters:
        assert {factor.device.type for _, *pair in adapters.factors() for factor in pair} == {"meta"}
        assert module[0].base_layer.weight.device.type == "cpu"


def test_text_encoders_are_adapted_too_and_left_as_they_were(toy: Any) -> None:
    """Fails if a layer of a second module is lost, is named after the first, changes with the order, or stays."""
    unet, encoder = toy().module, nn.ModuleDict({"self_attn": nn.ModuleDict({"q_proj": nn.Linear(4, 4)})})
    modules = {PREFIX: unet, "clip_l.transformer.": encoder}
    layers = matched_layers(modules, "attention")
    assert layers[-1] == "clip_l.transformer.self_attn.q_proj" and len(layers) == 5
    before = dict(encoder["self_attn"].named_modules())
    with injected(modules, layers, rank=2, alpha=2.0, seed=0) as adapters:
        assert [name for name, _, _ in adapters.factors()] == list(layers)
        assert not encoder["self_attn"]["q_proj"].base_layer.weight.requires_grad
    assert encoder["self_attn"]["q_proj"] is before["q_proj"] and before["q_proj"].weight.requires_grad
    with (
        pytest.raises(ValueError, match=r"clip_g\.x is of none of the modules"),
        injected(modules, ["clip_g.x"], rank=2, alpha=2.0, seed=0),
    ):
        pass
