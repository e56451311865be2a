"""The host's TextGenerate as a judge: the two signatures that hosts have had, played by a class."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image


def test_both_signatures_of_text_generate_are_served(comfy: SimpleNamespace) -> None:
    """Fails if a picture is lost, the order turns, the answer is sampled, or an old host's single picture does not hold
    both."""
    from likeness.nodes.host.judges import text_generate

    seen: list[dict[str, Any]] = []

    class Several:
        @classmethod
        def execute(cls, clip: Any, prompt: str, max_length: int, sampling_mode: Any, images: Any = None) -> Any:
            seen.append({"clip": clip, "prompt": prompt, "mode": sampling_mode, "images": images})
            return SimpleNamespace(args=("Yes.", ""))

    class One:
        @classmethod
        def execute(cls, clip: Any, prompt: str, max_length: int, sampling_mode: Any, image: Any = None) -> Any:
            seen.append({"prompt": prompt, "image": image})
            return SimpleNamespace(args=("No.",))

    pictures = [Image.new("RGB", (8, 4), (255, 0, 0)), Image.new("RGB", (6, 10), (0, 255, 0))]
    assert text_generate(Several, "clip")("Same?", pictures) == "Yes."
    assert list(seen[0]["images"]) == ["image_0", "image_1"] and seen[0]["mode"] == {"sampling_mode": "off"}
    assert seen[0]["images"]["image_0"].shape == (1, 4, 8, 3) and seen[0]["images"]["image_0"][0, 0, 0].tolist() == [
        1,
        0,
        0,
    ]
    assert text_generate(One, "clip")("Same?", pictures) == "No."
    beside = seen[1]["image"]
    assert beside.shape == (1, 10, 8 + 16 + 6 + 16, 3) and "first left" in seen[1]["prompt"]
    assert beside[0, 0, 0].tolist() == [1, 0, 0] and beside[0, 0, 24].tolist() == [0, 1, 0]


def test_a_host_without_it_says_so(comfy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a missing node, or a text encoder that cannot write, ends in an AttributeError."""
    import nodes as host_nodes

    from likeness.nodes.host.judges import host_judge

    monkeypatch.setattr(host_nodes, "NODE_CLASS_MAPPINGS", {})
    with pytest.raises(ValueError, match="has no TextGenerate"):
        host_judge(None)
    monkeypatch.setattr(host_nodes, "NODE_CLASS_MAPPINGS", {"TextGenerate": object})
    with pytest.raises(ValueError, match="wire clip"):
        host_judge(object())
