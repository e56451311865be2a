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
