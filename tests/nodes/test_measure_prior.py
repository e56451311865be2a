"""What Token Prior makes of drawn pictures, with a network that compares them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch


def test_pictures_go_to_their_word_and_features_decide_a_tie(comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are given, not drawn, in batches that end within a word. Fails if a batch goes to another word, the
    network gets channels last, or its variance is that of another word or decides nothing."""
    from likeness.nodes.host import token_prior
    from likeness.nodes.host.drawn import How

    chance = torch.Generator().manual_seed(0)
    same = torch.rand(3, 16, 20, 3, generator=chance)
    known = torch.rand(1, 16, 20, 3, generator=chance).expand(3, -1, -1, -1)
    given = {"a dog": known, "a xqz": same, "a zzz": same.flip(0)}  # the same pairs in another order: the same SSIM
    asked_for = []

    def drawn_pictures(patcher: Any, clip: Any, vae: Any, asked: Any, how: Any, tell: Any, drawn: Any) -> None:
        count = 0
        for one in asked:
            asked_for.append((one.prompt, one.seeds))
            for batch in given[one.prompt].split(2):
                count += len(batch)
                drawn(count, batch)

    def features(pictures: torch.Tensor) -> torch.Tensor:
        assert pictures.shape == (3, 3, 16, 20)
        order = torch.equal(pictures, same.flip(0).movedim(-1, 1))
        return torch.eye(3) if order else torch.ones(3, 3)  # zzz: as varied as can be; the others: all the same

    monkeypatch.setattr(token_prior, "draw_pictures", drawn_pictures)
    how = How("", 2, 1.0, "euler", "normal", 20, 16, 2)
    model = SimpleNamespace(features=features)

    def measure(words: list[str], network: Any, how: How = how, seeds: tuple[int, ...] = (5, 6, 7)) -> Any:
        patcher = SimpleNamespace(load_device="cpu")
        return token_prior.measure_prior(patcher, None, None, words, "a {word}", seeds, how, network, None)

    found = measure(["dog", "xqz", "zzz"], model)
    assert asked_for == [(f"a {word}", (5, 6, 7)) for word in ("dog", "xqz", "zzz")]
    read = {each["word"]: each for each in json.loads(found.json)["words"]}
    assert {word: round(each["feature_variance"], 6) for word, each in read.items()} == {"dog": 0, "xqz": 0, "zzz": 1}
    assert read["dog"]["ssim"] == pytest.approx(1) and read["xqz"]["ssim"] == pytest.approx(read["zzz"]["ssim"])
    assert found.word == "zzz" and "feature variance" in found.table and found.sheet.shape[0] == 1
    bare = measure(["xqz", "dog", "zzz"], None)
    assert bare.word == "xqz" and "feature variance" not in bare.table
    with pytest.raises(ValueError, match="at least 2"):
        measure(["dog"], None, seeds=(5,))
    with pytest.raises(ValueError, match="too small"):
        measure(["dog"], None, How("", 2, 1.0, "euler", "normal", 8, 8, 2))
    assert token_prior.words_of(" sks,\n a  b , sks\n") == ["sks", "a b"]
