"""Does the host make the same weight of our files as our adapters do in training?"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from likeness.lora.keys import from_deltas, rename
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors
from likeness.trainers.adapters import Method
from likeness.trainers.layer_rules import parse_rules
from likeness.trainers.lora import Adapters, injected
from likeness.trainers.targets import PREFIX

METHODS = {
    "lora": Method(),
    "gaussian": Method(init="gaussian"),
    "rslora": Method(rank_stabilised=True),
    "pissa": Method(init="pissa"),
    "olora": Method(init="olora"),
    "dora": Method("dora"),
    "dora, rs": Method("dora", rank_stabilised=True),
    "loha": Method("loha"),
    "lokr": Method("lokr"),
    "lokr, factor 2": Method("lokr", lokr_factor=2),
    "oft": Method("oft"),
    "adalora": Method("adalora"),
    "adaptive": Method("adaptive"),
}
LAYERS = {
    "linear": lambda: nn.Linear(24, 36),
    "no bias": lambda: nn.Linear(24, 36, bias=False),
    "conv1": lambda: nn.Conv2d(24, 36, 1),
    "conv3": lambda: nn.Conv2d(24, 36, 3, stride=2, padding=1),
}
INPUTS = {"linear": (2, 5, 24), "no bias": (5, 24), "conv1": (2, 24, 5, 5), "conv3": (2, 24, 5, 5)}


def made(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.ModuleDict({"layer": LAYERS[kind]()})


def moved(adapters: Adapters) -> None:
    chance = torch.Generator().manual_seed(2)
    for parameter in adapters.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=chance)


def by_host(comfy: Any, module: nn.Module, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weight that the host's own loader makes of the layer's."""
    name = f"{PREFIX}layer.weight"
    patches = comfy.lora.load_lora(dict(tensors), {f"{PREFIX}layer": name})
    assert set(patches) == {name}, "the host does not know these tensors"
    assert patches[name].loaded_keys == set(tensors)
    weight = module.get_submodule("layer").weight.detach().clone()
    return comfy.lora.calculate_weight([(1.0, patches[name], 1.0, None, None)], weight, name)


@pytest.mark.parametrize(("kind", "method"), itertools.product(LAYERS, METHODS))
def test_the_host_makes_the_same_weight(kind: str, method: str, comfy: Any) -> None:
    """Fails if a factor is transposed, scaled otherwise, of another norm, sign or side than the host takes it for."""
    module = made(kind)
    x = torch.randn(INPUTS[kind], generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before = module["layer"](x)
    with injected({PREFIX: module}, [f"{PREFIX}layer"], rank=4, alpha=3.0, seed=0, method=METHODS[method]) as adapters:
        with torch.no_grad():
            assert torch.allclose(module["layer"](x), before, atol=1e-5), "training does not start from the base model"
            assert float(adapters.norm()) == 0
        moved(adapters)
        with torch.no_grad():
            trained = module["layer"](x)
            with adapters.disabled():
                assert torch.equal(module["layer"](x), before)
        tensors = adapters.result()
        deltas = adapters.deltas()
        norm = float(adapters.norm())
    with torch.no_grad():
        assert torch.equal(module["layer"](x), before)
        if deltas:
            assert from_deltas(deltas).keys() == tensors.keys()
            assert all(torch.equal(tensors[key], value) for key, value in from_deltas(deltas).items())
        weight = by_host(comfy, module, tensors)
        assert norm == pytest.approx(float((weight - module["layer"].weight).norm()), rel=1e-5)
        module["layer"].weight.copy_(weight)
        host = module["layer"](x)
    assert not torch.allclose(host, before, atol=1e-2)
    assert torch.allclose(host, trained, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", ["dora", "loha", "lokr", "oft"])
def test_files_of_every_algorithm_come_back(method: str, tmp_path: Any) -> None:
    """Fails if a naming drops or renames what is not a plain LoRA's, or diffusers' takes what it has no form for."""
    name = "input_blocks.1.1.transformer_blocks.0.attn2.to_k"
    module = nn.Module()
    there: Any = module
    for part in name.split(".")[:-1]:
        there.add_module(part, nn.Module())
        there = there.get_submodule(part)
    there.add_module("to_k", nn.Linear(24, 36))
    with injected({PREFIX: module}, [PREFIX + name], rank=4, alpha=3.0, seed=0, method=METHODS[method]) as adapters:
        moved(adapters)
        tensors = LoraTensors(adapters.result(), {"likeness.res_blocks": "[2, 2, 2, 2]"})
    for naming in ("kohya", "comfy"):
        path = tmp_path / f"{naming}.safetensors"
        save_lora(path, tensors, naming, "fp32")
        back = load_lora(path, {PREFIX + name: (36, 24)})
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[key], tensors[key]) for key in tensors)
    with pytest.raises(ValueError, match="save with the naming kohya or comfy"):
        rename(tensors, "diffusers", (2, 2, 2, 2))


def test_ranks_by_rule_reach_the_file(comfy: Any) -> None:
    """Fails if a rule's rank or alpha is trained otherwise than it is written, or a layer of rank 0 is adapted."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        module = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("layer", "other", "last")})
    rules = parse_rules("other$ rank=0\nlayer$ rank=2 alpha=6 lr=0.5")
    layers = [PREFIX + name for name in module]
    x = torch.randn(3, 8)
    with injected({PREFIX: module}, layers, rank=4, alpha=4.0, seed=0, rules=rules) as adapters:
        moved(adapters)
        assert adapters.rates() == [0.5, 0.5, 1.0, 1.0]
        with torch.no_grad():
            trained = module["layer"](x)
        tensors = adapters.result()
    assert {key.split(".")[1] for key in tensors} == {"layer", "last"}
    assert tensors[f"{PREFIX}layer.lora_down.weight"].shape == (2, 8)
    assert tensors[f"{PREFIX}last.lora_down.weight"].shape == (4, 8)
    own = {key: value for key, value in tensors.items() if ".layer." in key}
    with torch.no_grad():
        module["layer"].weight.copy_(by_host(comfy, module, own))
        assert torch.allclose(module["layer"](x), trained, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_beside_the_hosts_own_bf16_layers(method: str, comfy: Any) -> None:
    """Fails if an algorithm cannot stand beside the host's layer classes, answers in another dtype, or loses more than
    bf16 does against the host's weight in fp32."""
    import comfy.ops

    weight = made("linear")["layer"].weight.detach().bfloat16()
    module = nn.ModuleDict({"layer": comfy.ops.manual_cast.Linear(24, 36, dtype=torch.bfloat16)})
    with torch.no_grad():
        module["layer"].weight.copy_(weight)
        module["layer"].bias.zero_()
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(3)).bfloat16()
    with injected({PREFIX: module}, [f"{PREFIX}layer"], rank=4, alpha=3.0, seed=0, method=METHODS[method]) as adapters:
        moved(adapters)
        out = module["layer"](x)
        out.float().sum().backward()
        assert out.dtype == torch.bfloat16
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in adapters.parameters())
        tensors = adapters.result()
    module["layer"].weight = nn.Parameter(weight.float(), requires_grad=False)
    expected = x.float() @ by_host(comfy, module, tensors).T
    assert float((out.detach().float() - expected).norm() / expected.norm()) < 0.01
