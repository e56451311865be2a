"""Which vocabularies of a CLIP are scanned, with the host's own tokenizers of each family."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch


def clip(tokenizer: Any, **sizes: int | None) -> Any:
    """The host's tokenizers, and encoders that are nothing but a random embedding; None: the encoder is not there."""
    encoders: dict[str, Any] = {}
    for number, (name, rows) in enumerate(sizes.items()):
        if rows is None:
            encoders[name] = None
            continue
        table = torch.nn.Embedding(rows, 8)
        table.weight.data = torch.randn(rows, 8, generator=torch.Generator().manual_seed(number))
        encoders[name] = SimpleNamespace(transformer=SimpleNamespace(get_input_embeddings=lambda table=table: table))
    return SimpleNamespace(tokenizer=tokenizer, cond_stage_model=SimpleNamespace(**encoders))


CLIP, T5 = 49408, 32128


@pytest.fixture(scope="module")
def sd3_tokenizer(comfy: Any) -> Any:
    """Three in one: clip_l, clip_g, t5xxl, under the names that SDXL and Flux use for theirs, too."""
    import comfy.text_encoders.sd3_clip

    return comfy.text_encoders.sd3_clip.SD3Tokenizer()


def test_each_family_offers_what_it_encodes_with(sd3_tokenizer: Any) -> None:
    """Fails if an encoder that was not loaded is offered (SD3 without T5), or "auto" takes another than CLIP's."""
    from likeness.nodes.host.tokenizers import chosen_tokenizer, tokenizers_of

    sd15 = clip(SimpleNamespace(clip="clip_l", clip_l=sd3_tokenizer.clip_l), clip_l=CLIP)
    sdxl = clip(SimpleNamespace(clip_l=sd3_tokenizer.clip_l, clip_g=sd3_tokenizer.clip_g), clip_l=CLIP, clip_g=CLIP)
    sd3 = clip(sd3_tokenizer, clip_l=CLIP, clip_g=CLIP, t5xxl=None)
    only_g = clip(sd3_tokenizer, clip_l=None, clip_g=CLIP, t5xxl=T5)
    for model, names, auto in (
        (sd15, {"clip_l"}, "clip_l"),
        (sdxl, {"clip_l", "clip_g"}, "clip_l"),
        (sd3, {"clip_l", "clip_g"}, "clip_l"),
        (only_g, {"clip_g", "t5xxl"}, "clip_g"),
    ):
        found = tokenizers_of(model)
        assert set(found) == names and chosen_tokenizer(found, " auto ").name == auto
    assert chosen_tokenizer(tokenizers_of(sdxl), "clip_g").embedding.shape == (CLIP, 8)
    with pytest.raises(ValueError, match=r"no tokenizer 't5xxl'; it has clip_l, clip_g"):
        chosen_tokenizer(tokenizers_of(sd3), "t5xxl")
    with pytest.raises(ValueError, match="no text encoder whose vocabulary"):
        tokenizers_of(clip(sd3_tokenizer, clip_l=None, clip_g=None, t5xxl=None))


def test_t5s_words_are_found_and_cost_clip_what_clip_says(sd3_tokenizer: Any) -> None:
    """Oracle: the host's tokenizers on whole prompts. Fails if ▁ stays on a word, a piece passes for a word, or a
    word's tokens are counted with those around it."""
    from likeness.nodes.host.find_tokens import find_tokens
    from likeness.nodes.host.tokenizers import tokenizers_of

    flux = clip(sd3_tokenizer, clip_l=CLIP, t5xxl=T5)
    scan = find_tokens(flux, "t5xxl", 4, 5, "[q-z][a-z]+", 40, 5, None)
    assert scan.tokenizer == "t5xxl" and set(scan.others) == {"clip_l"} and len(scan.ranked) > 100

    def tokens(name: str, text: str) -> list[int]:
        pads = {getattr(sd3_tokenizer, name).pad_token, getattr(sd3_tokenizer, name).end_token}
        (row,) = sd3_tokenizer.tokenize_with_weights(text)[{"clip_l": "l"}.get(name, name)]
        return [number for number, _ in row if number not in pads]

    for each in scan.ranked[:40]:
        with_word, without = tokens("t5xxl", f"a photo of {each.word}"), tokens("t5xxl", "a photo of")
        assert with_word == [*without, each.token]
        clips = len(tokens("clip_l", f"a photo of {each.word}")) - len(tokens("clip_l", "a photo of"))
        assert scan.others["clip_l"][each.word] == clips
    pieces = tokenizers_of(flux)["clip_l"].pieces
    assert pieces("immen") == ("im", "men</w>") and pieces("iklan") == ("iklan</w>",)
    with pytest.raises(ValueError, match="none of the vocabulary's"):
        find_tokens(flux, "t5xxl", 4, 5, "[0-9]{5}x", 40, 5, None)
