from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from likeness.trainers.adapters import Method
from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.lora import injected
from likeness.trainers.low_rank import principal
from likeness.trainers.oft import OFTLayer, block_size
from likeness.trainers.targets import PREFIX, matched_layers

METHODS = [
    Method(),
    Method(init="gaussian"),
    Method(init="pissa"),
    Method(init="olora"),
    Method("dora"),
    Method("loha"),
    Method("lokr"),
    Method("oft"),
    Method("adalora"),
    Method("adaptive"),
]
RUN = TrainingConfig(steps=3, rank=2, target_rank=1, alpha=1.0, learning_rate=1e-2, targets="all", batch_size=2, seed=5)


def name_of(method: Method) -> str:
    return method.algorithm if method.init == "kaiming" else method.init


def traces(module: nn.Module) -> list[Any]:
    """What an adapter could leave behind, by identity."""
    return [
        (name, id(part), list(part._modules), sorted(part.__dict__), len(part._forward_hooks), part.training)
        for name, part in module.named_modules()
    ] + [
        (name, id(p), p.data_ptr(), p.requires_grad, p.detach().clone().sum().item())
        for name, p in module.named_parameters()
    ]


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_begins_by_the_seed_alone_and_leaves_no_trace(method: Method, toy: Any) -> None:
    """Fails if an init draws from the global generator, moves it, writes to a weight, or a hook or a layer stays."""
    seen = []
    for disturbance in (1, 2):
        module = toy().module
        before = traces(module)
        with torch.random.fork_rng():
            torch.manual_seed(disturbance)
            layers = matched_layers({PREFIX: module}, "all")
            with injected({PREFIX: module}, layers, rank=2, alpha=1.0, seed=3, method=method) as adapters:
                seen.append(adapters.tensors())
                assert len({name.rsplit(".", 1)[0].split(".lora")[0] for name in seen[-1]}) == len(layers)
        assert traces(module) == before
    assert seen[0].keys() == seen[1].keys()
    assert all(torch.equal(seen[0][name], seen[1][name]) for name in seen[0])


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_recomputed_blocks_change_no_bit(method: Method, toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a recomputed block meets another adapter than the first time, of any algorithm."""
    results = []
    for on in (False, True):
        config = dataclasses.replace(
            RUN, algorithm=method.algorithm, init=method.init, gradient_checkpointing=on, steps=2
        )
        results.append(train(toy(), data(2), config, tmp_path / str(on)))
    assert results[0].losses == results[1].losses
    for name, tensor in results[0].tensors.items():
        assert torch.equal(tensor, results[1].tensors[name]), name


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_inits_are_pefts(init: str) -> None:
    """Fails if the factors are not those that peft takes out of the weight (an independent implementation)."""
    from peft import LoraConfig, inject_adapter_in_model

    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(12, 20)
    oracle = nn.Sequential(nn.Linear(12, 20))
    oracle[0].load_state_dict(layer.state_dict())
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["0"], init_lora_weights=init)
    inject_adapter_in_model(config, oracle, adapter_name="a")
    module = nn.Sequential(layer)
    method = Method(init=init)
    with injected({PREFIX: module}, [f"{PREFIX}0"], rank=4, alpha=6.0, seed=0, method=method) as adapters:
        ((_, down, up),) = adapters.factors()
        theirs = oracle[0].lora_B["a"].weight @ oracle[0].lora_A["a"].weight
        assert torch.allclose(up @ down, theirs, atol=1e-5)
        with torch.no_grad():  # the same step from there gives the same layer
            x = torch.randn(7, 12)
            up += 0.1
            oracle[0].lora_B["a"].weight += 0.1
            sign = torch.sign((down * oracle[0].lora_A["a"].weight).sum(1))  # of singular vectors, which are free
            up += 0.1 * (sign - 1)
            assert torch.allclose(module(x), oracle(x), atol=1e-4)


def test_principal_finds_the_best_of_a_rank() -> None:
    """Fails if the range finder misses a leading direction: against the full decomposition, with a slow decay."""
    chance = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 80, generator=chance))[0] for size in (120, 80))
    values = torch.arange(1.0, 81.0) ** -0.5
    matrix = left * values @ right.T
    u, s, v = principal(matrix, 8, torch.Generator().manual_seed(1))
    assert torch.allclose(s, values[:8], rtol=1e-2)
    best = float(values[8:].square().sum().sqrt())
    assert float((matrix - u * s @ v).norm()) < 1.01 * best
    assert torch.allclose(u.T @ u, torch.eye(8), atol=1e-5)


def test_oft_turns_and_stretches_nothing() -> None:
    """Fails if R is not orthogonal, or the bias is turned with the outputs."""
    layer = OFTLayer(nn.Linear(6, 8), 4).double()
    layer.oft_blocks.data.normal_(generator=torch.Generator().manual_seed(0))
    turn = layer.turn() + torch.eye(4)
    assert torch.allclose(turn @ turn.mT, torch.eye(4, dtype=torch.float64).expand(2, 4, 4), atol=1e-12)
    assert torch.allclose(layer(torch.zeros(1, 6).double())[0], layer.base_layer.bias)
    x = torch.randn(5, 6).double()
    plain, turned = (out - layer.base_layer.bias for out in (layer.base_layer(x), layer(x)))
    assert torch.allclose(plain.norm(dim=1), turned.norm(dim=1)) and not torch.allclose(plain, turned)
    assert [block_size(outputs, 16) for outputs in (320, 7, 36, 17)] == [16, 7, 12, 1]


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_a_quantised_base_is_served_or_refused(method: Method) -> None:
    """Fails if an algorithm computes with the raw numbers of an fp8 weight, whose scale is kept elsewhere."""
    module = nn.Sequential(nn.Linear(8, 8))
    module[0].weight = nn.Parameter(module[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    needs = method.algorithm == "dora" or method.init in ("pissa", "olora")
    context = injected({PREFIX: module}, [f"{PREFIX}0"], rank=2, alpha=1.0, seed=0, method=method)
    if not needs:
        with context as adapters:
            assert adapters.parameters()[0].dtype == torch.float32
        return
    layer = module[0]
    with pytest.raises(ValueError, match=r"needs the base model's weights as numbers.*float8_e4m3fn"), context:
        pass
    assert module[0] is layer


def test_dora_of_a_zero_column_is_refused() -> None:
    """Fails if 0/0 is trained on: every number of the run would be NaN, and the advice a lower learning rate."""
    module = nn.Sequential(nn.Linear(4, 4))
    nn.init.zeros_(module[0].weight[:, 1:])
    context = injected({PREFIX: module}, [f"{PREFIX}0"], rank=1, alpha=1.0, seed=0, method=Method("dora"))
    with pytest.raises(ValueError, match=r"^diffusion_model\.0: .*3 of them are zero"), context:
        pass


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_dora_and_its_gradient_are_the_papers(kind: str) -> None:
    """Fails if W' is not m (W + ΔW)/‖W + ΔW‖ column by column, or the norm is differentiated (§4.3 holds it)."""
    chance = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 7) if kind == "linear" else nn.Conv2d(5, 7, 3, padding=1)
    x = torch.randn(2, 5, 6, 6, generator=chance) if kind == "conv" else torch.randn(3, 5, generator=chance)
    module = nn.Sequential(layer)
    method = Method("dora", rank_stabilised=True)
    with injected({PREFIX: module}, [f"{PREFIX}0"], rank=4, alpha=3.0, seed=0, method=method) as adapters:
        down, up, m = adapters.parameters()
        with torch.no_grad():
            for parameter in (down, up, m):
                parameter += 0.3 * torch.randn(parameter.shape, generator=chance)
        out = module(x)
        out.square().sum().backward()
        seen = [parameter.grad.clone() for parameter in (down, up, m) if parameter.grad is not None]

        adapted = layer.weight + 1.5 * (up.flatten(1) @ down.flatten(1)).view(layer.weight.shape)
        columns = tuple(axis for axis in range(adapted.ndim) if axis != 1)
        weight = m * adapted / adapted.detach().square().sum(columns, keepdim=True).sqrt()
        expected = (
            nn.functional.linear(x, weight, layer.bias)
            if kind == "linear"
            else nn.functional.conv2d(x, weight, layer.bias, padding=1)
        )
        assert torch.allclose(out, expected, atol=1e-5)
        wanted = torch.autograd.grad(expected.square().sum(), (down, up, m))
        assert len(seen) == 3
        for ours, theirs in zip(seen, wanted, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)
