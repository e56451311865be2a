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
        assert count.count == 3
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


class PlainBlock(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up, self.down, self.calls = nn.Linear(width, inner), nn.Linear(inner, width), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.down(torch.tanh(self.up(x)))


def held(net: nn.Module, x: Tensor) -> int:
    """Bytes that the graph of a forward pass holds, parameters and input not counted, by torch's own hooks."""
    kept = {x.untyped_storage().data_ptr(): 0, **{p.untyped_storage().data_ptr(): 0 for p in net.parameters()}}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net(x)
    return sum(kept.values())


def test_share_takes_the_blocks_that_keep_most() -> None:
    """Half of four blocks, of inner widths 4, 32, 8, 16: fails if others are recomputed, or sizes are measured wrong.

    The oracle is the count of calls, and torch's own hook around each block alone.
    """
    torch.manual_seed(0)
    net = nn.Sequential(*(PlainBlock(3, inner) for inner in (4, 32, 8, 16)))
    x, parameters = torch.randn(5, 3, requires_grad=True), list(net.parameters())
    expected = torch.autograd.grad(net(x).square().sum(), parameters)
    alone = [held(block, x) for block in net]
    with recomputed_blocks(net, share=0.5) as found:
        for _ in range(2):
            for block in net:
                block.calls = 0
            got = torch.autograd.grad(net(x).square().sum(), parameters)
            assert all(map(torch.equal, got, expected))
    assert found.chosen == {1, 3}
    assert found.kept == alone
    assert [block.calls for block in net] == [1, 2, 1, 2]


def test_the_last_layer_is_not_computed_again() -> None:
    """Counts matrix products with LoRA on both layers: fails if recomputing goes on when all needed is there."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from likeness.trainers.branch import lean_branches
    from likeness.trainers.lora import injected

    aten = torch.ops.aten
    multiply = (aten.mm, aten.addmm, aten.addmm_)

    class Products(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.count += func.overloadpacket in multiply
            return func(*args, **(kwargs or {}))

    net = nn.Sequential(PlainBlock(3, 4))
    names = ["diffusion_model.0.up", "diffusion_model.0.down"]
    counts = []
    with injected({"diffusion_model.": net}, names, rank=2, alpha=2.0, seed=0), lean_branches({"": net}) as lean:
        assert lean == 2
        for share in (0.0, 1.0):
            with recomputed_blocks(net, share=share), Products() as products:
                net(torch.randn(5, 3)).square().sum().backward()
            counts.append(products.count)
    assert counts[1] - counts[0] == 5  # A, B and W of up, A and B of down, and not W of down


def test_dropout_is_drawn_again() -> None:
    """Fails if the second pass of a block drops other values than the first."""

    class DropBlock(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.drop = nn.Linear(8, 8), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(self.drop(x)))

    torch.manual_seed(0)
    net, x = nn.Sequential(DropBlock(), DropBlock()), torch.randn(3, 8)
    results = []
    for share in (0.0, 1.0):
        torch.manual_seed(1)
        with recomputed_blocks(net, random=True, share=share):
            results.append(torch.autograd.grad(net(x).square().sum(), list(net.parameters())))
        results[-1] = (*results[-1], torch.rand(1))
    assert all(map(torch.equal, *results))


def test_an_input_changed_afterwards_is_an_error() -> None:
    """Fails if a block is silently recomputed from other numbers than it first saw."""
    net, x = nn.Sequential(PlainBlock(3, 4)), torch.randn(5, 3)
    with recomputed_blocks(net):
        loss = net(x).square().sum()
        x.add_(1)
        with pytest.raises(RuntimeError, match="gradient_checkpointing"):
            loss.backward()
