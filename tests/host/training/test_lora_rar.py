"""A library of LoRAs in the host's folder -> a hypernetwork in its folder -> a merge, in the host's own process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from likeness.lora.delta import LowRankDelta
from likeness.lora.files import write_safetensors
from likeness.lora.keys import from_deltas

HOW = {"steps": 3, "learning_rate": 0.01, "cosine_weight": 0.01, "held_out": 1, "seed": 1, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def loaded(comfy: SimpleNamespace, tiny_checkpoint: Path) -> Iterator[tuple[Any, ...]]:
    """(model, clip, vae), loaded as the host does: in inference mode."""
    import comfy.sd

    with torch.inference_mode():
        yield comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint), output_vae=True, output_clip=True)[:3]


@pytest.fixture(scope="module")
def library(comfy: SimpleNamespace, loaded: tuple[Any, ...]) -> tuple[str, str]:
    """Two subjects and two styles: one with a prompt beside it, one with pictures, two with a trigger word alone."""
    from likeness.nodes.host import model_layers

    attention = {n: s for n, s in model_layers(loaded[0]).items() if "attn" in n and len(s) == 2}
    shapes = dict(list(attention.items())[:8])
    assert len(shapes) == 8
    for number, name in enumerate(("rar/subjects/one", "rar/subjects/two", "rar/styles/one", "rar/styles/two")):
        chance = torch.Generator().manual_seed(number)
        deltas = {
            layer: LowRankDelta(
                torch.randn(s[0], 2, generator=chance), torch.randn(2, s[1], generator=chance), 0.02, "linear"
            )
            for layer, s in shapes.items()
        }
        path = comfy.loras / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"likeness.trigger": f"word{number}"} if number else {}
        write_safetensors(path, from_deltas(deltas), {"format": "pt", **about})
    (comfy.loras / "rar/subjects/one.txt").write_text("a picture of a sks\n\na red sks\n", encoding="utf-8")
    pictures = comfy.loras / "rar/styles/two"
    pictures.mkdir()
    Image.new("RGB", (64, 64), (200, 30, 60)).save(pictures / "1.png")
    folder = comfy.base / "models" / "hypernetworks"
    folder.mkdir(parents=True, exist_ok=True)
    comfy.folder_paths.add_model_folder_path("hypernetworks", str(folder), is_default=True)
    comfy.folder_paths.filename_list_cache.clear()
    return "rar/subjects/*", "rar/styles/*"


@pytest.fixture(autouse=True)
def no_page(comfy: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host tells a node its id; here nobody does."""
    from likeness.nodes.train_lora_rar import LikenessTrainLoRARar

    monkeypatch.setattr(
        LikenessTrainLoRARar, "hidden", SimpleNamespace(unique_id=None, prompt=None, extra_pnginfo=None)
    )


def test_from_a_library_to_a_merge(loaded: tuple[Any, ...], library: tuple[str, str]) -> None:
    """Fails where a file, its prompts or its pictures are not found, where held-out LoRAs are learnt from, or where the
    file that was written is not the network that was taught."""
    from likeness.lora.load import load_lora
    from likeness.merging.lora_rar import load_network
    from likeness.nodes.lora_rar import LikenessLoRARar
    from likeness.nodes.train_lora_rar import LikenessTrainLoRARar

    network, curve, report, path, folder = LikenessTrainLoRARar.execute(*loaded, *library, filename="rar/t", **HOW).args
    assert curve.shape[0] == 1 and "rar/subjects/two.safetensors + rar/styles/two.safetensors" in report
    assert network.about["steps"] == 3 and "1 subjects and 1 styles" in report
    again = load_network(Path(path))
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert not torch.equal(again.out.bias, torch.ones(2)), "nothing was taught"
    import folder_paths

    pair = [
        load_lora(folder_paths.get_full_path_or_raise("loras", f"rar/{n}/two.safetensors"))
        for n in ("subjects", "styles")
    ]
    merged = LikenessLoRARar.execute(*pair, "(connected)", trained=network, model=loaded[0]).args[0]
    assert {t.shape[0] for key, t in merged.items() if key.endswith("lora_down.weight")} == {4}
    assert (Path(folder) / "checkpoints").is_dir()
    assert not any(module._forward_hooks for module in loaded[0].model.modules())


def test_refusals(loaded: tuple[Any, ...], library: tuple[str, str]) -> None:
    """Told before any work: nothing left to learn from, and a name that leads out of the folder."""
    from likeness.nodes.train_lora_rar import LikenessTrainLoRARar

    for change, message in (({"held_out": 2}, "nothing is left"), ({"filename": "../../x"}, "leads out")):
        with pytest.raises(ValueError, match=message):
            LikenessTrainLoRARar.execute(*loaded, *library, **{"filename": "rar/t", **HOW, **change})
