"""The text encoder's arithmetic, against transformers'."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from likeness.tinyworld.text import END, LENGTH, START, WIDTH
from likeness.tinyworld.text_encoder import TextEncoder, checkpoint_text, encoder_tensors, load_encoder
from likeness.tinyworld.unet import Attention

CAPTIONS = [[320, 1125, 320], [], [7]]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    """Random all over: a trained layer is no identity."""
    torch.manual_seed(0)
    made = TextEncoder([320, 1125, 7])
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name != "rows":
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return made.requires_grad_(False)


def whole(encoder: TextEncoder) -> Tensor:
    """All 77 tokens of CAPTIONS by transformers' CLIPTextModel with the checkpoint's weights: (3, 77, 768)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    weights = checkpoint_text(encoder, torch.float32)
    model = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)).eval()
    names = set(model.state_dict())
    # transformers 5 has no text_model in between
    loaded = {name if name in names else name.removeprefix("text_model."): t for name, t in weights.items()}
    missing, unexpected = model.load_state_dict(loaded, strict=False)
    assert not missing and all(name.endswith("position_ids") for name in unexpected)
    tokens = torch.full((len(CAPTIONS), LENGTH), END)
    tokens[:, 0] = START
    for i, caption in enumerate(CAPTIONS):
        tokens[i, 1 : len(caption) + 1] = torch.tensor(caption, dtype=torch.long)
    with torch.no_grad():
        states: Tensor = model(tokens).last_hidden_state
    return states


def test_it_is_clips_first_layer(encoder: TextEncoder) -> None:
    """Oracle: CLIPTextModel over 77 tokens. Fails if the k-th END sees another share of ENDs, or a word sees ahead."""
    encoded = encoder(CAPTIONS)
    context, bias = encoded.context(), encoded.bias
    expected = whole(encoder)
    for i, caption in enumerate(CAPTIONS):
        there = bias[i, 0, 0] == 0
        assert int(there.sum()) == LENGTH
        torch.testing.assert_close(context[i, there], expected[i], rtol=1e-3, atol=1e-4)
        assert not torch.allclose(expected[i, len(caption) + 1], expected[i, -1], atol=1e-2)  # ENDs do differ


def test_few_ends_stand_for_all(encoder: TextEncoder) -> None:
    """Oracle: cross-attention over all 77. Fails if a share's weight is not log of its size: off by far more."""
    torch.manual_seed(1)
    attention, x = Attention(WIDTH).requires_grad_(False), torch.randn(len(CAPTIONS), 6, 320)
    expected = attention(x, whole(encoder))

    def attended(ends: int, rng: np.random.Generator | None = None) -> Tensor:
        encoded = encoder(CAPTIONS, ends, rng)
        return attention(x, encoded.context(), encoded.bias)

    few = attended(16)
    torch.testing.assert_close(few, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
    drawn = [attended(4, np.random.default_rng(i)) for i in range(64)]
    torch.testing.assert_close(torch.stack(drawn).mean(0), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_an_untrained_layer_is_the_identity() -> None:
    """Closed form. Fails if an output projection does not begin at zero."""
    fresh = TextEncoder([320])
    found = fresh([[320]])
    rows = [fresh.rows[fresh.row_of[token]] for token in (START, 320, END)]
    torch.testing.assert_close(found.states[0, :3], torch.stack(rows))
    assert found.first_end == 2


def test_shipped_encoder_is_the_trained_one(encoder: TextEncoder) -> None:
    """Closed form: int8 is off by 1/254 of a channel's largest weight. Fails if a tensor is lost or transposed."""
    back = load_encoder(encoder_tensors(encoder))
    assert back.ids == encoder.ids
    for name, t in encoder.state_dict().items():
        limit = float(t.abs().max()) / 200 if t.ndim == 2 else 1e-3
        torch.testing.assert_close(back.state_dict()[name], t, rtol=1e-3, atol=limit)
