from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers.rebinding import Rebinding
from likeness.trainers.recompute import recomputed_blocks


class RudeBlock(nn.Module):
    """Adds to its input in place (as Flux's single block), reads options that its model changes later."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(3, elementwise_affine=False)
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, *, options: dict[str, Any]) -> Tensor:
        x += torch.tanh(self.linear(self.norm(x))) * options["index"]
        return x


class RudeNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(RudeBlock() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        options = {"index": 0}
        x = x * 1.0
        for block in self.blocks:
            options["index"] += 1
            x = block(x, options=options)
        options["index"] = 100
        return x


def by_differences(net: nn.Module, x: Tensor) -> list[Tensor]:
    """Central differences of the loss with regard to every parameter."""
    slopes = []
    with torch.no_grad():
        for parameter in net.parameters():
            slope = torch.zeros_like(parameter)
            for index in range(parameter.numel()):
                place = parameter.view(-1)[index : index + 1]
                losses = []
                for side in (1e-6, -2e-6):
                    place += side
                    losses.append(net(x).square().sum().item())
                place += 1e-6
                slope.view(-1)[index] = (losses[0] - losses[1]) / 2e-6
            slopes.append(slope)
    return slopes


def test_gradients_survive_in_place_blocks_and_changing_options() -> None:
    """Fails if a block that adds to its normalised input in place, or whose options change, has wrong gradients."""
    torch.manual_seed(0)
    net, x = RudeNet().double(), torch.randn(2, 3, dtype=torch.float64)
    expected = by_differences(net, x)
    parameters = list(net.parameters())
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(net(x).square().sum(), parameters)
    with Rebinding() as rebinding:
        plain = torch.autograd.grad(net(x).square().sum(), parameters)
    assert rebinding.count == 3
    with recomputed_blocks(net) as count:
        assert count == 3
        recomputed = torch.autograd.grad(net(x).square().sum(), parameters)
    for got in (plain, recomputed):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(expected, got, strict=True))
    assert all("forward" not in block.__dict__ for block in net.blocks)


def test_rebinding_keeps_dtype_views_and_plain_tensors() -> None:
    """Fails if a half tensor becomes float, a slice is not written back, or tensors without gradient are copied."""
    weight = torch.ones(4, requires_grad=True)
    with Rebinding() as rebinding:
        x = (weight * 1).half()
        x += torch.ones(4)
        y = torch.zeros(4)
        y[1:3] += weight[:2] * 2
        z = same = torch.zeros(2)
        z -= 1
        called = weight * 1
        called.add_(1)  # no statement: without the change of the object itself it would do nothing
    assert x.dtype == torch.float16 and rebinding.count == 2
    assert called.tolist() == [2, 2, 2, 2]
    assert y.tolist() == [0, 2, 2, 0] and z is same
    y.sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [2, 2, 0, 0]


def test_a_block_that_fails_leaves_no_hook_behind() -> None:
    """The error is still alive when the step is done again: fails if autograd then recomputes the block that failed."""
    net, x = RudeNet(), torch.randn(2, 3)
    with recomputed_blocks(net):
        with pytest.raises(KeyError) as error:
            net.blocks[0](x * 1, options={})
        assert error.value is not None
        weight = torch.ones(3, requires_grad=True)
        (slope,) = torch.autograd.grad((weight * weight).sum(), [weight])
        assert slope.tolist() == [2, 2, 2]
