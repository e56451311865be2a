from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers.attention_entropy import attention_entropy, cross_attention_entropy
from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train

RUN = TrainingConfig(
    algorithm="adaptive", steps=3, rank=3, target_rank=2, alpha=4.0, learning_rate=1e-2, targets="all", batch_size=2
)


class Cross(nn.Module):
    """As the host's: to_q of the picture, to_k of the text."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k = (nn.Linear(width, width, bias=False) for _ in "qk")

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        q, k = self.to_q(x), self.to_k(text)
        return x + torch.softmax(q @ k.mT, -1) @ text


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"attn2": Cross(), "attn1": Cross()}) for _ in range(2))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        for block in self.blocks:
            x = block["attn2"](block["attn1"](x, x), text)
        return x


def test_entropy_is_that_of_the_maps() -> None:
    """Fails if heads are mixed, or the scale of the logits or of the sum is another: maps written out one by one."""
    chance = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 5, 6, generator=chance), torch.randn(2, 7, 6, generator=chance)
    terms = []
    for sample in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            for place in range(5):
                p = torch.softmax(k[sample, :, head] @ q[sample, place, head] / 3**0.5, 0)
                terms.append(-sum(float(x) * math.log(float(x)) for x in p) / math.log(7))
    assert attention_entropy(q, k, 2).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
    assert attention_entropy(torch.zeros_like(q), k, 2).item() == pytest.approx(1)
    assert attention_entropy(100 * k[:, :5], 100 * k, 2).item() < 0.05


def test_only_cross_attention_is_watched_and_hooks_go() -> None:
    """Fails if self-attention counts, a pass without gradients does, or a hook stays in the model."""
    torch.manual_seed(0)
    model = Model()
    x, text = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    with cross_attention_entropy(model) as now:
        with torch.no_grad():
            model(x, text)
        assert now() is None
        model(x, text)
        found = now()
        assert found is not None and found.requires_grad and now() is None
        found.backward()
        grads = [block["attn2"].to_k.weight.grad for block in model.blocks]
        assert all(grad is not None and bool(grad.any()) for grad in grads)
        with torch.no_grad():
            expected, h = 0.0, x
            for block in model.blocks:
                h = block["attn1"](h, h)
                cross = block["attn2"]
                expected += attention_entropy(cross.to_q(h), cross.to_k(text), 2).item() / 2
                h = cross(h, text)
        assert found.item() == pytest.approx(expected, rel=1e-6)
    assert not any(part._forward_hooks for part in model.modules())


class Worded:
    """The toy with cross-attention over words."""

    def __init__(self, toy: Any) -> None:
        self.toy = toy
        with torch.random.fork_rng():
            torch.manual_seed(3)
            toy.module.blocks = nn.ModuleDict({"attn2": Cross(4, 2)})
        plain = toy.module.forward
        text = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(1))

        def forward(x: Tensor, sigma: Tensor, cond: Tensor) -> Tensor:
            tokens = x.flatten(2).mT
            mixed = toy.module.blocks["attn2"](tokens, text.expand(len(x), -1, -1))
            return plain(mixed.mT.reshape(x.shape), sigma, cond)

        toy.module.forward = forward


def test_a_run_lowers_it(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the term does not reach the adapters, or makes entropy greater."""
    found = {}
    for weight in (0.0, 3.0):
        denoiser = Worded(toy()).toy
        config = dataclasses.replace(RUN, entropy_weight=weight, steps=60, learning_rate=3e-2)
        result = train(denoiser, data(2), config, tmp_path / str(weight))
        attention = denoiser.module.blocks["attn2"]
        with torch.no_grad():
            for name, delta in result.deltas.items():
                if "attn2" in name:
                    layer = attention.get_submodule(name.rsplit(".", 1)[1])
                    layer.weight += delta.dense()
            with cross_attention_entropy(denoiser.module) as now, torch.enable_grad():
                denoiser.denoise(torch.ones(1, 4, 4, 4), torch.ones(1), [1.0])
                entropy = now()
        assert entropy is not None
        found[weight] = entropy.item()
    assert found[3.0] < found[0.0] - 0.02, found


def test_models_without_it_are_refused(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if the weight is silently without effect."""
    with pytest.raises(ValueError, match="no cross-attention"):
        train(toy(), data(), dataclasses.replace(RUN, entropy_weight=0.1), tmp_path)
