from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers.config import TrainingConfig
from likeness.trainers.estimate import Estimate, rehearse


def really_kept(forward: Any) -> int:
    """Bytes that the graph of a real pass keeps beside parameters, by torch's own hooks."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("chosen", ["to_q", "conv", ""])
def test_rehearsed_is_what_a_real_pass_keeps(toy: Any, chosen: str) -> None:
    """Against a real pass with the same layers learning: fails if a block's activations are missed or counted twice."""
    net = toy().module.requires_grad_(False)
    layers = {n: m for n, m in net.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and chosen in n}

    def forward() -> Tensor:
        return net(torch.randn(2, 4, 8, 8), torch.ones(2), torch.ones(2))

    config = TrainingConfig(rank=3)
    estimate = rehearse(net, layers, forward, config)
    assert estimate is not None
    assert not any(parameter.requires_grad for parameter in net.parameters())
    for layer in layers.values():
        layer.weight.requires_grad_(True)
    assert estimate.activations(config) == really_kept(forward)
    assert estimate.trained == 16 * 3 * sum(
        layer.weight.shape[0] + layer.weight[0].numel() for layer in layers.values()
    )
    assert estimate.weights == 4 * sum(parameter.numel() for parameter in net.parameters())


class CastLinear(nn.Linear):
    """Casts its weight to the input's dtype, as hosts do with fp8."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


class FeedForwardBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.out = CastLinear(8, 16, bias=False), CastLinear(16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(torch.tanh(self.attn(x)))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16, torch.float32])
def test_weights_that_are_cast(dtype: torch.dtype) -> None:
    """Against a run's own graph: fails if nothing learns beside fp8, or its copies are thought to be kept."""
    from likeness.trainers.branch import lean_branches
    from likeness.trainers.lora import injected
    from likeness.trainers.recast import recast_weights

    net = nn.Sequential(*(FeedForwardBlock() for _ in range(3))).requires_grad_(False)
    for block in net:
        for layer in (block.attn, block.out):
            layer.weight = nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    layers = {f"diffusion_model.{i}.attn": block.attn for i, block in enumerate(net)}
    config = TrainingConfig(rank=2)
    estimate = rehearse(net, layers, lambda: net(torch.randn(100, 8)), config)
    assert estimate is not None and not any(parameter.requires_grad for parameter in net.parameters())
    ranks = 3 * 2 * 100 * 4  # each layer's own few channels are not in it
    adapted = injected({"diffusion_model.": net}, list(layers), rank=2, alpha=2.0, seed=0)
    with adapted, lean_branches({"": net}), recast_weights(net):
        assert estimate.activations(config) == really_kept(lambda: net(torch.randn(100, 8))) - ranks
    copy = 0 if dtype == torch.float32 else 8 * 16 * 4
    once = 100 * (8 + 16) * 4
    assert estimate.again == (once + copy, once + 2 * copy, once + 2 * copy)  # the first one's input learns nothing


def test_advice_is_the_difference_of_two_estimates() -> None:
    """By hand: 4 blocks of 100 B activations, 10 B inputs, 1000 B weights: fails if a saving is wrong."""
    estimate = Estimate(5000, (1000,) * 4, 80, 50, (100,) * 4, (10,) * 4)
    config = TrainingConfig(batch_size=2)
    assert estimate.total(config) == 5000 + 80 + 50 + 400
    recomputed = dataclasses.replace(config, gradient_checkpointing=True)
    assert estimate.activations(recomputed) == 50 + 40 + 100
    half = dataclasses.replace(recomputed, checkpointing_share=0.5)
    assert estimate.activations(half) == 50 + 20 + 200 + 100
    assert estimate.resident(dataclasses.replace(config, offload_blocks=1.0)) == 1000 + 2000
    saved = dict(estimate.advice(config))
    assert saved["turn on gradient_checkpointing in Training Options"] == 400 - 140
    assert saved["set offload_blocks to 1 in Memory Options"] == 2000
    assert list(saved.values()) == sorted(saved.values(), reverse=True)
    everything = dataclasses.replace(recomputed, offload_blocks=1.0, batch_size=1)
    assert [what for what, _ in estimate.advice(everything)] == ["halve the dataset's resolution"]


def test_what_a_model_makes_on_the_way_does_not_stay(toy: Any) -> None:
    """Fails if a table that the model keeps for itself is left without numbers."""

    class Keeping(nn.Module):
        table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(3.0)
            return x * self.table

    net = Keeping()
    assert rehearse(net, {}, lambda: net(torch.ones(3)), TrainingConfig()) is not None
    assert net(torch.ones(3)).tolist() == [0, 1, 2]


def test_a_model_that_needs_numbers_is_not_rehearsed(toy: Any) -> None:
    """Fails if such a model cannot be trained at all."""
    net = toy().module
    assert rehearse(net, {}, lambda: torch.ones(int(torch.rand(1).item() * 5)), TrainingConfig()) is None
