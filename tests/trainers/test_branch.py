from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from likeness.trainers.branch import lean_branches
from likeness.trainers.lora import Adapters, injected
from likeness.trainers.recompute import recomputed_blocks

BF16 = torch.bfloat16


class HostLinear(nn.Linear):
    """As a host's: a forward of its own that asks for the same product."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight, self.bias)


class ScaledLinear(nn.Linear):
    """One that multiplies and then does more."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.nn.functional.linear(x, self.weight, self.bias)


class SmallBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.plain, self.bare = nn.Linear(6, 8), HostLinear(8, 5, bias=False)
        self.more = ScaledLinear(5, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x)).flatten(2).mT  # not contiguous
        return torch.tanh(self.more(torch.tanh(self.bare(torch.tanh(self.plain(x))))))


LAYERS = ["0.conv", "0.plain", "0.bare", "0.more"]


@pytest.fixture()
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(SmallBlock())


def adapted(net: nn.Module, stack: ExitStack, dtype: torch.dtype = torch.float32) -> Adapters:
    names = ["diffusion_model." + name for name in LAYERS]
    adapters = stack.enter_context(injected({"diffusion_model.": net}, names, rank=3, alpha=2.0, seed=0, dtype=dtype))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    return adapters


def by_hand(net: Any, x: Tensor) -> Tensor:
    """y = W x + b + 2/3 B A x, in the factors' own dtype."""

    def layer(lora: Any, x: Tensor) -> Tensor:
        base, a, b = lora.base_layer, lora.lora_A["likeness"].weight, lora.lora_B["likeness"].weight
        change = (b.flatten(1) @ a.flatten(1)).reshape(base.weight.shape) * (2 / 3)
        weight, bias = base.weight.to(a.dtype), None if base.bias is None else base.bias.to(a.dtype)
        if weight.ndim == 4:
            return torch.nn.functional.conv2d(x, weight + change, bias, padding=1)
        once = torch.nn.functional.linear(x, weight, bias)
        return once * (2 if isinstance(base, ScaledLinear) else 1) + torch.nn.functional.linear(x, change)

    block = net[0]
    x = torch.tanh(layer(block.conv, x)).flatten(2).mT
    for each in (block.plain, block.bare, block.more):
        x = torch.tanh(layer(each, x))
    return x


def test_gradients_of_all_inputs(net: nn.Module) -> None:
    """Finite differences in fp64, alpha ≠ rank: fails if a product has the wrong factor or misses the scale."""
    net.to(torch.float64)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    with ExitStack() as stack:
        parameters = adapted(net, stack, torch.float64).parameters()
        assert stack.enter_context(lean_branches({"": net})) == len(LAYERS)
        torch.testing.assert_close(net(x), by_hand(net, x))
        assert torch.autograd.gradcheck(lambda x, *_: net(x), (x, *parameters))


@pytest.fixture(params=[False, True], ids=["kept", "recomputed"])
def recomputed(request: Any) -> Iterator[bool]:
    yield request.param


def test_bf16_copies_follow_their_factors(net: nn.Module, recomputed: bool) -> None:
    """Two steps of two passes beside bf16 against fp32 by hand: fails if a copy is stale or a gradient is lost."""
    net.to(BF16)
    with ExitStack() as stack:
        adapters = adapted(net, stack)
        parameters = adapters.parameters()
        stack.enter_context(lean_branches({"": net}))
        if recomputed:
            stack.enter_context(recomputed_blocks(net))
        optimizer = torch.optim.AdamW(parameters, lr=0.3, fused=True)
        for _ in range(2):
            optimizer.zero_grad()
            pictures = [torch.randn(2, 3, 4, 4) for _ in range(2)]
            for x in pictures:
                net(x.to(BF16)).float().square().sum().backward()
            expected = torch.autograd.grad(sum(by_hand(net, x).square().sum() for x in pictures), parameters)
            for parameter, exact in zip(parameters, expected, strict=True):
                assert parameter.grad is not None and parameter.grad.dtype == torch.float32
                torch.testing.assert_close(parameter.grad, exact, rtol=0.1, atol=0.05 * float(exact.abs().max()))
            optimizer.step()
            x = pictures[0]
            with torch.no_grad():  # between two passes: a sample
                torch.testing.assert_close(net(x.to(BF16)).float(), by_hand(net, x), rtol=0.05, atol=0.05)


class Counted(TorchDispatchMode):
    """Operations that are kernels of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_layer_costs_seven_operations() -> None:
    """Beside those of the frozen model: fails if a cast, a scale or a sum a layer comes back."""
    layers = nn.Sequential(*(HostLinear(4, 4).to(BF16).requires_grad_(False) for _ in range(5)))
    x = torch.randn(3, 4).to(BF16).requires_grad_()
    moves = {"t", "view", "detach", "empty", "empty_like", "_unsafe_view", "expand"}
    costs = []
    for names in ([], [f"diffusion_model.{index}" for index in range(5)]):
        with ExitStack() as stack:
            if names:
                stack.enter_context(injected({"diffusion_model.": layers}, names, rank=2, alpha=1.0, seed=0))
                stack.enter_context(lean_branches({"": layers}))
            with Counted() as counted:
                layers(x).sum().backward()
        costs.append([name for name in counted.names if name not in moves])
    at_once = sum(name.startswith("_foreach") for name in costs[1])
    assert at_once <= 4
    assert len(costs[1]) - len(costs[0]) - at_once <= 7 * 5 + 1
    assert costs[1].count("_to_copy") <= costs[0].count("_to_copy")


def test_norm_of_all_layers(net: nn.Module) -> None:
    """Against each ΔW's: fails if layers that are taken together lose their own scale or count twice."""
    layers = nn.Sequential(*(nn.Linear(4, 4 + index // 3) for index in range(6)))
    names = [f"diffusion_model.{index}" for index in range(6)]
    with injected({"diffusion_model.": layers}, names, rank=2, alpha=1.0, seed=0) as adapters:
        with torch.no_grad():
            for parameter in adapters.parameters():
                parameter.normal_()
        exact = torch.stack([layer.change().square().sum() for layer in adapters._layers.values()]).sum().sqrt()
        torch.testing.assert_close(adapters.norm(), exact)
