"""Text encoders beside the model: which layers, and at which rate."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.trainers.config import TrainingConfig
from likeness.trainers.loop import train
from likeness.trainers.modules import trained_modules
from likeness.trainers.outcome import TrainingResult
from likeness.trainers.targets import text_encoder_layers

RUN = TrainingConfig(
    steps=1,
    rank=2,
    alpha=2,
    learning_rate=1e-2,
    text_encoder_learning_rate=1e-3,
    targets="all",
    optimizer="sgd",
    weight_decay=0.0,
    max_grad_norm=0.0,
    batch_size=2,
)


class Layer(nn.Module):
    """Named as CLIP's are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(width, width), "out_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, width), "fc2": nn.Linear(width, width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn["out_proj"](torch.tanh(self.self_attn["q_proj"](x)))
        return x + self.mlp["fc2"](torch.tanh(self.mlp["fc1"](x)))


class Encoder(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.ModuleList([Layer(3), Layer(3)])
            self.text_projection = nn.Linear(3, 3)

    def forward(self, word: float) -> Tensor:
        x = torch.full((3,), word)
        for layer in self.layers:
            x = layer(x)
        return self.text_projection(x).sum()


def with_encoders(toy: Any) -> Any:
    """A toy whose condition, a number, goes through two encoders."""

    class Toy(toy):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.text_encoders = {"clip_l.": Encoder(1), "clip_g.": Encoder(2)}

        def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
            words = [sum(encoder(float(cond)) for encoder in self.text_encoders.values()) for cond in conds]
            out = self.module(noisy / (1 + sigma.view(-1, 1, 1, 1) ** 2).sqrt(), sigma, torch.stack(words))
            return noisy - sigma.view(-1, 1, 1, 1) * out

    return Toy()


def ups(result: TrainingResult) -> dict[str, Tensor]:
    return {name: delta.up for name, delta in result.deltas.items()}


def changed(**options: Any) -> TrainingConfig:
    return TrainingConfig(**{**RUN.__dict__, **options})


@pytest.mark.parametrize(
    ("which", "pattern", "layers"),
    [
        ("all", "", {"clip_l.layers.0.mlp.fc1", "clip_g.layers.1.self_attn.out_proj"}),
        ("first", "", {"clip_l.layers.0.mlp.fc1", "clip_l.layers.1.self_attn.q_proj"}),
        ("second", "", {"clip_g.layers.0.mlp.fc2", "clip_g.layers.1.self_attn.q_proj"}),
        ("custom", r"^clip_g\.text_projection", {"clip_g.text_projection"}),
    ],
)
def test_which_layers(toy: Any, which: str, pattern: str, layers: set[str]) -> None:
    """q, k, v, out, fc1 and fc2 as sd-scripts, of the encoders asked for: fails if others are taken, or some missed."""
    found = text_encoder_layers(with_encoders(toy).text_encoders, which, pattern)
    assert layers <= set(found)
    encoders = {"all": 2, "first": 1, "second": 1}
    assert len(found) == 8 * encoders.get(which, 0) or (which == "custom" and len(found) == 1)


def test_what_is_not_there_is_said(toy: Any) -> None:
    """Fails if a choice that trains nothing is taken in silence."""
    encoders = with_encoders(toy).text_encoders
    one = {"clip_l.": encoders["clip_l."]}
    with pytest.raises(ValueError, match="no second text encoder; there is clip_l"):
        text_encoder_layers(one, "second")
    with pytest.raises(ValueError, match="matches no layer"):
        text_encoder_layers(one, "custom", "clip_g")
    with pytest.raises(ValueError, match="without text encoders"):
        trained_modules(toy(), RUN)


def test_their_rate_is_their_own(toy: Any, data: Any, tmp_path: Path) -> None:
    """Plain gradient descent moves by rate × gradient: fails if the text's rate is the model's, or the other way."""
    results = {
        rate: ups(train(with_encoders(toy), data(2), changed(text_encoder_learning_rate=rate), tmp_path / str(rate)))
        for rate in (0.0, 1e-3, 4e-3, 1e-2)
    }
    text = [name for name in results[1e-3] if name.startswith("clip_")]
    assert len(text) == 16 and not any(name.startswith("clip_") for name in results[0.0])
    assert all(float(results[1e-3][name].abs().max()) > 0 for name in text)
    for name in text:
        torch.testing.assert_close(results[4e-3][name], 4 * results[1e-3][name], rtol=1e-5, atol=0)
        torch.testing.assert_close(results[1e-2][name], 10 * results[1e-3][name], rtol=1e-5, atol=0)
    for name, up in results[0.0].items():  # the first step of the model is the same, whatever the text does
        assert torch.equal(up, results[4e-3][name])


def test_rules_and_rates_go_together(toy: Any, data: Any, tmp_path: Path) -> None:
    """A rule's factor multiplies the text's rate, and its rank is that layer's: fails if one replaces the other."""
    plain = ups(train(with_encoders(toy), data(2), RUN, tmp_path / "plain"))
    rules = r"^clip_g\..*fc1$ lr=3" + "\n" + r"^clip_l\..*fc2$ rank=1"
    ruled = ups(train(with_encoders(toy), data(2), changed(layer_rules=rules), tmp_path / "ruled"))
    name = "clip_g.layers.1.mlp.fc1"
    torch.testing.assert_close(ruled[name], 3 * plain[name], rtol=1e-5, atol=0)
    assert ruled["clip_l.layers.0.mlp.fc2"].shape == (3, 1)


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_resume_is_bit_for_bit(toy: Any, data: Any, tmp_path: Path, optimizer: str) -> None:
    """Fails if the second group of the optimizer is not kept."""
    config = changed(steps=6, optimizer=optimizer, checkpoint_every=3, keep_last=0, text_encoders="second")
    whole = train(with_encoders(toy), data(3), config, tmp_path / "whole")
    start = tmp_path / "whole" / "checkpoints" / "step-000003"
    resumed = train(with_encoders(toy), data(3), config, tmp_path / "parts", resume_from=start)
    assert all(torch.equal(up, ups(resumed)[name]) for name, up in ups(whole).items())
    with pytest.raises(ValueError, match="text_encoders is 'first'"):
        train(
            with_encoders(toy),
            data(3),
            changed(**{**config.__dict__, "text_encoders": "first"}),
            tmp_path / "o",
            None,
            start,
        )


def test_another_share_of_the_rate_cannot_go_on_with_rules(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if a layer is handed the optimizer's state of another one, because they now share a rate."""
    config = changed(steps=2, layer_rules="fc1$ lr=0.5")
    train(with_encoders(toy), data(2), config, tmp_path)
    longer = {**config.__dict__, "steps": 3}
    with pytest.raises(ValueError, match=r"is 0\.5 of learning_rate, the checkpoint's 0\.1"):
        train(
            with_encoders(toy),
            data(2),
            changed(**{**longer, "text_encoder_learning_rate": 5e-3}),
            tmp_path,
            None,
            tmp_path,
        )
    train(with_encoders(toy), data(2), changed(**longer), tmp_path, None, tmp_path)


def test_encoders_are_put_back(toy: Any, data: Any, tmp_path: Path) -> None:
    """Fails if an adapter, a flag or a gradient stays."""
    denoiser = with_encoders(toy)
    before = [
        (name, id(p), p.requires_grad) for e in denoiser.text_encoders.values() for name, p in e.named_parameters()
    ]
    modules = [(name, id(m)) for e in denoiser.text_encoders.values() for name, m in e.named_modules()]
    train(denoiser, data(2), RUN, tmp_path)
    assert before == [
        (name, id(p), p.requires_grad) for e in denoiser.text_encoders.values() for name, p in e.named_parameters()
    ]
    assert modules == [(name, id(m)) for e in denoiser.text_encoders.values() for name, m in e.named_modules()]
    assert all(p.grad is None for e in denoiser.text_encoders.values() for p in e.parameters())


def test_configuration() -> None:
    """Fails if a pattern is forgotten, or Prodigy is given two rates."""
    with pytest.raises(ValueError, match="text_encoder_pattern is empty"):
        changed(text_encoders="custom").validate()
    with pytest.raises(ValueError, match="one rate for all layers; set text_encoder_learning_rate to 1"):
        changed(optimizer="prodigy", learning_rate=1.0, text_encoder_learning_rate=0.5).validate()
    changed(optimizer="prodigy", learning_rate=1.0, text_encoder_learning_rate=1.0).validate()
