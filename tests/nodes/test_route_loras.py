"""Route LoRAs in this process: only listed files are opened, only chosen ones are loaded, and new ones are seen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from likeness.lora.files import write_safetensors

KEY = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
SHOWN = {
    "total": 1.0,
    "most": 3,
    "threshold": 0.3,
    "trigger_evidence": 0.8,
    "word_evidence": 0.7,
    "text_evidence": 0.4,
}


def save(path: Path, trigger: str, width: int = 768) -> None:
    tensors = {f"{KEY}.lora_up.weight": torch.ones(4, 2), f"{KEY}.lora_down.weight": torch.ones(2, width)}
    write_safetensors(path, tensors, {"likeness.trigger": trigger})


@pytest.fixture
def folder(comfy: Any) -> Path:
    """models/loras/routed with two LoRAs, and a file outside of it."""
    loras: Path = comfy.loras
    save(loras / "routed" / "ink.safetensors", "inkwash")
    save(loras / "routed" / "deep" / "duck.safetensors", "sks duck")
    save(loras.parent / "secret.safetensors", "inkwash")
    return loras / "routed"


def execute(prompt: str, loras: str = "routed", **more: Any) -> tuple[Any, ...]:
    from likeness.nodes.route_loras import LikenessRouteLoRAs

    result = LikenessRouteLoRAs.execute(prompt, loras, **{**SHOWN, **more}).result
    assert result is not None
    return tuple(result)


def test_outputs_say_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if files, stack, table and JSON name other LoRAs or weights, a tag stays in the prompt, a missing MODEL is
    handed on as nothing, or a LoRA is loaded where none is applied."""
    import likeness.nodes.route_loras as module

    monkeypatch.setattr(module, "load_lora", lambda *_: pytest.fail("a LoRA was loaded"))
    model, clip, prompt, files, stack, table, plot, found = execute("a sks duck, <lora:routed/ink:0.4:0.1>")
    assert prompt == "a sks duck" and plot.shape == (1, 600, 1000, 3)
    assert files == "routed/ink.safetensors 0.4\nrouted/deep/duck.safetensors 0.6"
    assert stack == [("routed/ink.safetensors", 0.4, 0.1), ("routed/deep/duck.safetensors", 0.6, 0.6)]
    assert "| routed/ink | 0.4, text encoders 0.1 |" in table and "1.00 (sks duck)" in table
    assert [(one["file"], one["weight"]) for one in json.loads(found)["loras"]] == [(f, w) for f, w, _ in stack]
    assert "connect one to its input model" in model.message and "input clip" in clip.message
    assert execute("nothing of this")[3] == ""


@pytest.mark.parametrize(
    ("prompt", "loras"),
    [
        ("x", "../secret"),
        ("x", "../secret.safetensors"),
        ("x", "routed/../../secret"),
        ("x", "/"),
        ("x", "../*"),
        ("<lora:../secret>", "routed"),
        ("<lora:../secret.safetensors:1>", "routed"),
        ("<lora:secret>", "routed"),
    ],
)
def test_nothing_outside_of_the_folder_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, prompt: str, loras: str
) -> None:
    """Fails if a workflow from a stranger could have any other file read."""
    import likeness.nodes.route_loras as module

    read: list[Path] = []
    real = module.read_card
    monkeypatch.setattr(module, "read_card", lambda path, file: read.append(path) or real(path, file))
    with pytest.raises(ValueError, match="folder of LoRAs"):
        execute(prompt, loras)
    assert all(path.is_relative_to(folder) for path in read)
    assert "folder of LoRAs" in module.LikenessRouteLoRAs.fingerprint_inputs(prompt=prompt, loras=loras)


def test_what_is_new_is_seen(folder: Path) -> None:
    """Fails if the host would keep an old answer when a file, a note beside it, or the list of files has changed."""
    from likeness.nodes.route_loras import LikenessRouteLoRAs

    def seen(**inputs: Any) -> str:
        return LikenessRouteLoRAs.fingerprint_inputs(**{"prompt": None, "loras": "routed", **SHOWN, **inputs})

    states = [seen(), seen()]
    assert states[0] == states[1]
    (folder / "ink.txt").write_text("blot", "utf-8")
    states.append(seen())
    save(folder / "ink.safetensors", "other words")
    states.append(seen())
    save(folder / "third.safetensors", "wax")
    import folder_paths

    folder_paths.filename_list_cache.clear()
    states.append(seen())
    assert len(set(states[1:])) == 4
    assert seen(prompt="<lora:routed/ink>", loras="routed/deep") != seen(loras="routed/deep")
    assert execute("blot", "routed")[3] == "routed/ink.safetensors 1"
