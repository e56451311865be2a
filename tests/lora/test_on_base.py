"""DoRA and OFT on a known base weight, against peft, a loop over columns, and an orthogonal matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from likeness.lora.keys import canonicalise
from likeness.lora.kinds import LoraLayer, lora_layers
from likeness.lora.on_base import BaseWeights, change_on, magnified, turned

Q = "unet.mid_block.attentions.0.proj_in"
KINDS = {
    "linear": lambda: nn.Linear(10, 6, bias=False),
    "conv1": lambda: nn.Conv2d(10, 6, 1, bias=False),
    "conv3": lambda: nn.Conv2d(10, 6, 3, bias=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_those_of_peft(kind: str) -> None:
    """Fails if peft's magnitude is taken for columns, divided by another norm, or loses its place in a convolution:
    merged by peft itself, and its file read by us."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = nn.ModuleDict({"layer": KINDS[kind]()})
        weight = model["layer"].weight.detach().clone()
        model = get_peft_model(model, LoraConfig(r=2, lora_alpha=3, target_modules=["layer"], use_dora=True))
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.rand_like(parameter)
        saved = get_peft_model_state_dict(model)
        expected = model.merge_and_unload()["layer"].weight.detach() - weight
    named = {key.replace("base_model.model.layer", Q): tensor for key, tensor in saved.items()}
    tensors = canonicalise(named, alphas={Q: 3.0}).tensors
    (layer,) = lora_layers(tensors)[0]
    assert layer.parts["dora_scale"].shape == (6, 1, *(1,) * (weight.ndim - 2))
    found = change_on(BaseWeights({layer.name: weight}.get), layer)
    assert float(expected.norm()) > 0.3
    torch.testing.assert_close(found, expected.flatten(1), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 10), (6, 10, 3, 3), (6, 6)])
def test_columns(shape: tuple[int, ...]) -> None:
    """Fails if a magnitude (1, in) is not one of each input, over outputs and kernel: each column by itself."""
    chance = torch.Generator().manual_seed(1)
    weight, delta = (torch.randn(shape, generator=chance, dtype=torch.float64) for _ in range(2))
    magnitude = torch.rand(1, shape[1], *(1,) * (len(shape) - 2), generator=chance, dtype=torch.float64)
    for by_base in (False, True):  # which is of rows alone
        found = magnified(weight, delta, magnitude, by_base).reshape(shape)
        for i in range(shape[1]):
            column = (weight + delta)[:, i]
            new = magnitude.flatten()[i] * column / math.sqrt(float((column**2).sum()))
            torch.testing.assert_close(found[:, i], new - weight[:, i], atol=1e-5, rtol=1e-5)


def test_a_turn_keeps_lengths() -> None:
    """Fails if R is no rotation, turns other rows than its block's, or its bound is not kept: W's Gram matrix over each
    block stays, and Q with ‖Q‖ above the bound is as one of that length."""
    chance = torch.Generator().manual_seed(2)
    weight = torch.randn(6, 5, generator=chance, dtype=torch.float64)
    blocks = torch.randn(2, 3, 3, generator=chance, dtype=torch.float64)
    new = weight + turned(weight, blocks)
    for rows in (slice(0, 3), slice(3, 6)):
        torch.testing.assert_close(new[rows].T @ new[rows], weight[rows].T @ weight[rows])
    assert not torch.allclose(new, weight)
    length = (blocks - blocks.transpose(1, 2)).norm()
    torch.testing.assert_close(turned(weight, blocks, 0.1), turned(weight, blocks * 0.1 / length), atol=1e-7, rtol=1e-6)


def test_what_does_not_fit() -> None:
    """Fails if a model without the layer, or with one of another size, is no error that says so."""
    layer = LoraLayer("x", "x", {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 3),
                                 "dora_scale": torch.ones(1, 3)})  # fmt: skip
    with pytest.raises(ValueError, match=r"x is DoRA, and the MODEL .* has no such layer.*CLIP"):
        change_on(BaseWeights({}.get), layer)
    for weight in (torch.ones(4, 5), torch.ones(5, 4)):
        with pytest.raises(ValueError, match=r"does not fit the MODEL's weight"):
            change_on(BaseWeights({"x": weight}.get), layer)
