"""Routing on a running server: LoRAs that a prompt asks for, applied, merged, and handed to the host's own loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from likeness.experiments.client import Client, RunFailed
from likeness.experiments.workflow import set_inputs, to_api
from likeness.lora.load import save_lora
from likeness.lora.model import LoraTensors

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "route_loras.json"
BLOCK = "1.transformer_blocks.0"
LAYERS = {
    f"diffusion_model.input_blocks.3.{BLOCK}.attn2.to_k": (320, 768),
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.self_attn.v_proj": (768, 768),
}
CAPTIONS = {"duck": "a duck on a pond", "rocket": "a rocket in the sky", "ink": "ink drawing, black and white"}


def save(folder: Path, name: str, seed: int, metadata: dict[str, str], text_width: int = 768) -> None:
    chance = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer, (rows, columns) in LAYERS.items():
        columns = text_width if layer.endswith("to_k") else columns
        up, down = torch.randn(rows, 4, generator=chance), torch.randn(4, columns, generator=chance)
        tensors |= {f"{layer}.lora_up.weight": 0.015 * up, f"{layer}.lora_down.weight": down}
    save_lora(
        folder / f"{name}.safetensors", LoraTensors(tensors, {"likeness.res_blocks": "[1, 1]"} | metadata), "kohya"
    )


@pytest.fixture(scope="module")
def library(base: Path) -> Path:
    """Five LoRAs that say different things of themselves, and a file that is none."""
    folder = base / "models" / "loras" / "library"
    for seed, (name, caption) in enumerate(CAPTIONS.items()):
        save(folder, name, seed, {"ss_tag_frequency": json.dumps({"pictures": {caption: 5}})})
    save(folder, "someone", 7, {"likeness.trigger": "sks", "likeness.class_noun": "duck"})
    save(folder, "large", 8, {"likeness.trigger": "sks"}, text_width=2048)
    (folder / "broken.safetensors").write_bytes(b"<html>")
    return folder


def drawn(name: str, origin: str, text: Any) -> dict[str, Any]:
    return {
        f"{name} text": {"class_type": "CLIPTextEncode", "inputs": {"clip": [origin, 1], "text": text}},
        f"{name} sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": [origin, 0], "positive": [f"{name} text", 0], "negative": [f"{name} text", 0],
                "latent_image": ["size", 0], "seed": 1, "steps": 2, "cfg": 1.0, "sampler_name": "euler",
                "scheduler": "normal", "denoise": 1.0,
            },
        },
        name: {
            "class_type": "SaveLatent",
            "inputs": {"samples": [f"{name} sampler", 0], "filename_prefix": f"route/{name}"},
        },
    }  # fmt: skip


def start(**inputs: Any) -> dict[str, Any]:
    shown = {"loras": "library", "total": 1.2, "most": 2, "threshold": 0.2, "apply": True}
    shown |= {"trigger_evidence": 0.8, "word_evidence": 0.7, "text_evidence": 0.4}
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-unet.safetensors"}},
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "route": {
            "class_type": "LikenessRouteLoRAs",
            "inputs": {**shown, "model": ["base", 0], "clip": ["base", 1], **inputs},
        },
        **{n: {"class_type": "PreviewAny", "inputs": {"source": ["route", i]}} for n, i in (("files", 3), ("json", 7))},
    }


def latent(base: Path, name: str) -> torch.Tensor:
    (path,) = (base / "output" / "route").glob(f"{name}_*.latent")
    return load_file(path)["latent_tensor"]


def test_what_a_prompt_asks_for_is_what_is_drawn_with(client: Client, base: Path, library: Path) -> None:
    """Against the host's own LoRA loader with the files and weights of the table. Fails if another LoRA or weight is
    applied than is said, the text encoders are left out, the LoRA of another model comes through, or the list cannot be
    merged to the same model."""
    graph = start(prompt="a (sks:1.1) duck on a pond, <lora:library/ink:0.4:0.2>")
    graph |= drawn("routed", "route", ["route", 2]) | drawn("plain", "base", "a (sks:1.1) duck on a pond")
    found = client.run(graph, timeout=300)
    about = {one["file"].split("/")[1].split(".")[0]: one for one in json.loads(found.text("json"))["loras"]}
    assert [name for name, one in about.items() if one["chosen"]] == ["ink", "someone", "duck"]
    assert about["large"]["why"] == "for Stable Diffusion XL" and "web page" in about["broken"]["why"]
    assert about["someone"]["trigger"] == 1 and about["duck"]["words"] > about["rocket"]["words"]
    assert about["duck"]["text"] > about["rocket"]["text"] and about["duck"]["text"] > about["ink"]["text"]
    assert sum(one["weight"] for one in about.values()) == pytest.approx(1.2, abs=2e-4)
    assert found.files("route"), "the plot is not shown"

    stack = [(line.rsplit(" ", 1)[0], float(line.rsplit(" ", 1)[1])) for line in found.text("files").splitlines()]
    assert [name for name, _ in stack] == [f"library/{name}.safetensors" for name in ("ink", "someone", "duck")]
    graph, last = start(prompt="a sks duck on a pond", apply=False, total=1.0, most=2), "base"
    del graph["json"]
    for number, (name, weight) in enumerate(stack):
        clip = 0.2 if number == 0 else weight
        graph[f"host {number}"] = {
            "class_type": "LoraLoader",
            "inputs": {
                "model": [last, 0], "clip": [last, 1], "lora_name": name, "strength_model": weight,
                "strength_clip": clip,
            },
        }  # fmt: skip
        last = f"host {number}"
    graph["merge"] = {
        "class_type": "LikenessMergeLoRAs",
        "inputs": {
            "method": "linear", "weights": "1", "density": 1.0, "output_rank": "exact", "rank": 4, "seed": 0,
            "files": ["route", 3],
        },
    }  # fmt: skip
    merged = {
        "model": ["route", 0],
        "clip": ["route", 1],
        "lora": ["merge", 0],
        "strength_model": 1,
        "strength_clip": 1,
    }
    graph["merged"] = {"class_type": "LikenessApplyMerged", "inputs": merged}
    graph["again"] = {**graph["route"], "inputs": {**graph["route"]["inputs"], "apply": True}}
    graph |= drawn("by-the-host", last, "a (sks:1.1) duck on a pond")
    graph |= drawn("merged-one", "merged", "x") | drawn("applied", "again", "x")
    client.run(graph, timeout=300)
    ours, hosts, plain = latent(base, "routed"), latent(base, "by-the-host"), latent(base, "plain")
    assert torch.equal(ours, hosts) and float((ours - plain).abs().max()) > 0.02 * float(plain.max() - plain.min())
    one, other = latent(base, "merged-one"), latent(base, "applied")
    assert float((one - other).abs().max()) <= 1e-4 * float(other.max() - other.min())


def test_what_cannot_be_done_is_said(client: Client, library: Path) -> None:
    """Fails if a tag that names nothing, or a LoRA of another model, is passed over in silence; or if a missing model
    is an error far from its cause."""
    for prompt, said in (("<lora:dock>", "did you mean library/duck"), ("<lora:large>", "for Stable Diffusion XL")):
        with pytest.raises(RunFailed, match=said):
            client.run(start(prompt=prompt))
    graph = start(prompt="sks")
    del graph["route"]["inputs"]["model"]
    assert "library/large" in client.run(graph).text("files")
    graph |= drawn("nothing", "route", "x")
    with pytest.raises(RunFailed, match="connect one to its input model"):
        client.run(graph)


def test_the_workflow_runs_on_what_the_quickstart_leaves(
    client: Client, base: Path, object_info: dict[str, Any]
) -> None:
    """Fails if the graph as shipped is refused, finds nothing in a folder with the quickstart's LoRA, or draws the same
    picture with and without it."""
    save(base / "models" / "loras" / "likeness", "quickstart", 9, {"likeness.trigger": "sks"})
    graph = to_api(json.loads(WORKFLOW.read_text("utf-8")), object_info)
    set_inputs(graph, "LikenessRouteLoRAs", loras="likeness/quickstart")
    set_inputs(graph, "KSampler", steps=2)
    set_inputs(graph, "EmptyLatentImage", batch_size=1)
    run = client.run(graph, timeout=300)
    shown = [run.text(node) for node in graph if graph[node]["class_type"] == "PreviewAny"]
    assert any("| likeness/quickstart | 1 |" in text for text in shown)
    pictures = [client.view(run.files(n)[0]) for n, node in graph.items() if node["class_type"] == "SaveImage"]
    assert len(pictures) == len(set(pictures)) == 2
