"""Merging on a running server: what the merged LoRA draws, and a checkpoint it was baked into; what is refused."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from likeness.experiments.client import Client, Event, Interrupted, RunFailed
from likeness.lora.load import load_lora, save_lora
from likeness.lora.model import LoraTensors

UNET, CLIP = "diffusion_model", "text_encoders.clip_l.transformer.text_model.encoder.layers"
BLOCK = "1.transformer_blocks.0"
FIRST = {
    f"{UNET}.input_blocks.1.{BLOCK}.attn1.to_q": (320, 320),
    f"{UNET}.input_blocks.3.{BLOCK}.attn2.to_k": (320, 768),
    f"{UNET}.output_blocks.1.0.in_layers.2": (320, 640, 3, 3),
    f"{CLIP}.11.self_attn.v_proj": (768, 768),
}
SECOND = {
    f"{UNET}.input_blocks.3.{BLOCK}.attn2.to_k": (320, 768),
    f"{UNET}.output_blocks.1.0.in_layers.2": (320, 640, 3, 3),
    f"{UNET}.output_blocks.3.{BLOCK}.ff.net.2": (320, 1280),
    f"{CLIP}.10.mlp.fc2": (768, 3072),
}
METADATA = {"likeness.res_blocks": "[1, 1]", "likeness.trigger": "sks"}
Graph = dict[str, dict[str, Any]]


def lora(seed: int, layers: dict[str, tuple[int, ...]], rank: int, alpha: float, size: float = 120.0) -> LoraTensors:
    """A LoRA that changes every layer by ‖ΔW‖ ≈ size."""
    chance = torch.Generator().manual_seed(seed)
    out = {}
    for name, (rows, columns, *kernel) in layers.items():
        down = torch.randn(rank, columns, *kernel, generator=chance)
        up = torch.randn(rows, rank, *(1 for _ in kernel), generator=chance)
        up *= size * rank / alpha / (rank * down.numel() / rank * rows) ** 0.5
        out |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(alpha)}
    return LoraTensors(out, METADATA)


def dora(seed: int) -> LoraTensors:
    """A DoRA of one layer, with magnitudes of columns."""
    (name, (_, columns)), *_ = FIRST.items()
    tensors = {key: tensor for key, tensor in lora(seed, FIRST, 4, 4.0).items() if key.startswith(name)}
    chance = torch.Generator().manual_seed(seed)
    return LoraTensors(tensors | {f"{name}.dora_scale": 1 + 4 * torch.rand(1, columns, generator=chance)}, METADATA)


def drawn(graph: Graph, name: str, model: str, clip: str, checkpoint: str = "base") -> None:
    """Add to the graph: four steps with this MODEL and CLIP, saved as latent and as picture."""
    graph |= {
        f"{name} prompt": {"class_type": "CLIPTextEncode", "inputs": {"clip": [clip, 1], "text": "a picture of a sks"}},
        f"{name} sampler": {
            "class_type": "KSampler",
            "inputs": {
                "model": [model, 0], "positive": [f"{name} prompt", 0], "negative": [f"{name} prompt", 0],
                "latent_image": ["size", 0], "seed": 1, "steps": 4, "cfg": 1.0, "sampler_name": "euler",
                "scheduler": "normal", "denoise": 1.0,
            },
        },
        f"{name} latent": {
            "class_type": "SaveLatent",
            "inputs": {"samples": [f"{name} sampler", 0], "filename_prefix": f"merge/{name}"},
        },
        f"{name} decoded": {
            "class_type": "VAEDecode",
            "inputs": {"samples": [f"{name} sampler", 0], "vae": [checkpoint, 2]},
        },
        f"{name} picture": {
            "class_type": "SaveImage",
            "inputs": {"images": [f"{name} decoded", 0], "filename_prefix": f"merge/{name}"},
        },
    }  # fmt: skip


def loaded(name: str, strength: float, after: str = "base") -> dict[str, Any]:
    inputs = {"lora_name": f"{name}.safetensors", "strength_model": strength, "strength_clip": strength}
    return {"class_type": "LoraLoader", "inputs": {**inputs, "model": [after, 0], "clip": [after, 1]}}


def merge(**inputs: Any) -> dict[str, Any]:
    shown = {"method": "linear", "weights": "1", "density": 0.5, "output_rank": "exact", "rank": 4, "seed": 0}
    return {"class_type": "LikenessMergeLoRAs", "inputs": {**shown, **inputs}}


def latent(base: Path, name: str) -> torch.Tensor:
    (path,) = (base / "output" / "merge").glob(f"{name}_*.latent")
    return load_file(path)["latent_tensor"]


def picture(client: Client, run: Any, name: str) -> np.ndarray:
    shown = Image.open(io.BytesIO(client.view(run.files(f"{name} picture")[0]))).convert("RGB")
    return np.asarray(shown).astype(int)


def start() -> Graph:
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiny-unet.safetensors"}},
        "size": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    }


def test_the_merged_file_and_the_baked_checkpoint_draw_what_the_single_files_draw(client: Client, base: Path) -> None:
    """Against the host's own stack of patches. Fails if a weight, scale, kernel or text encoder layer is lost or taken
    twice, a DoRA's change is not that on this base, or Save Checkpoint writes weights without the LoRA. 1e-4 of the
    range: float32 sums in another order differ by 1e-6."""
    loras = base / "models" / "loras" / "merge"
    save_lora(loras / "first.safetensors", lora(1, FIRST, 4, 2.0), "kohya", "fp32")
    save_lora(loras / "second.safetensors", lora(2, SECOND, 7, 7.0), "diffusers", "fp32")
    save_lora(loras / "dora.safetensors", dora(3), "comfy", "fp32")
    graph = start() | {
        "one": loaded("merge/first", 0.8),
        "both": loaded("merge/second", -0.5, after="one"),
        "merge": merge(files="merge/first 0.8\nmerge/second", weights="1 -0.5"),
        "applied": {
            "class_type": "LikenessApplyMerged",
            "inputs": {
                "model": ["base", 0], "clip": ["base", 1], "lora": ["merge", 0], "strength_model": 1.0,
                "strength_clip": 1.0,
            },
        },
        "text": {"class_type": "PreviewAny", "inputs": {"source": ["applied", 2]}},
        "report": {"class_type": "PreviewAny", "inputs": {"source": ["merge", 1]}},
        "saved": {
            "class_type": "LikenessSaveLoRA",
            "inputs": {"lora": ["merge", 0], "filename": "merge/merged", "naming": "kohya", "dtype": "fp32"},
        },
        "baked": {
            "class_type": "CheckpointSave",
            "inputs": {
                "model": ["applied", 0], "clip": ["applied", 1], "vae": ["base", 2], "filename_prefix": "merge/baked",
            },
        },
        "dora": loaded("merge/dora", 1.0),
        "as lora": merge(files="merge/dora", model=["base", 0], clip=["base", 1]),
        "dora merged": {
            "class_type": "LoraModelLoader",
            "inputs": {"model": ["base", 0], "lora": ["as lora", 0], "strength_model": 1.0},
        },
    }  # fmt: skip
    for name, model, clip in (
        ("plain", "base", "base"),
        ("stacked", "both", "both"),
        ("applied", "applied", "applied"),
        ("dora", "dora", "base"),
        ("dora-merged", "dora merged", "base"),
    ):
        drawn(graph, name, model, clip)
    run = client.run(graph, timeout=300)
    assert run.text("text") == "4 layers of the model × 1, 2 layers of text encoders × 1"
    assert "| merge/second | -0.5 | 4 |" in run.text("report")

    (checkpoint,) = (base / "output" / "merge").glob("baked_*.safetensors")
    (base / "models" / "checkpoints" / "baked.safetensors").symlink_to(checkpoint)
    graph = start() | {"file": loaded("merge/merged", 1.0)}
    graph["baked"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "baked.safetensors"}}
    drawn(graph, "file", "file", "file")
    drawn(graph, "baked", "baked", "baked", checkpoint="baked")
    again = client.run(graph, timeout=300)

    plain, stacked = latent(base, "plain"), latent(base, "stacked")
    span = float(stacked.max() - stacked.min())
    assert float((plain - stacked).abs().max()) > 0.02 * span, "the LoRAs change too little to test with"
    for name, of in (("applied", run), ("file", again), ("baked", again)):
        assert float((latent(base, name) - stacked).abs().max()) <= 1e-4 * span, name
        assert np.abs(picture(client, of, name) - picture(client, run, "stacked")).max() <= 1, name
    magnified, merged = latent(base, "dora"), latent(base, "dora-merged")
    assert float((plain - magnified).abs().max()) > 0.005 * span
    assert float((magnified - merged).abs().max()) <= 1e-4 * span
    assert load_lora(loras / "merged.safetensors").metadata["likeness.trigger"] == "sks"


def test_loras_of_different_models_and_what_does_not_fit_are_refused(client: Client, base: Path) -> None:
    """Fails if a user of a wrong pair is not told which two models and which layer, or Apply leaves layers out in
    silence, as the host's loader does."""
    layer = f"{UNET}.input_blocks.1.{BLOCK}.attn2.to_k"
    folder = base / "models" / "loras" / "wrong"
    for name, columns in (("sd1", 768), ("sd2", 1024)):
        save_lora(folder / f"{name}.safetensors", lora(1, {layer: (320, columns)}, 2, 2.0), "kohya", "fp32")
    graph = start() | {"merge": merge(files="wrong/sd1\nwrong/sd2")}
    told = (
        r"LikenessMergeLoRAs .*wrong/sd1 \(architecture: Stable Diffusion 1\) and wrong/sd2 \(architecture: Stable "
        rf"Diffusion 2\) .*first layer that differs is {layer}: .*320×768.*320×1024"
    )
    with pytest.raises(RunFailed, match=told):
        client.run(graph)
    graph["merge"] = merge(files="wrong/sd2", model=["base", 0])
    with pytest.raises(RunFailed, match=rf"sd2\.safetensors: .*{layer}.*320×1024.*320×768"):
        client.run(graph)
    graph["merge"] = merge(files="wrong/sd3")
    with pytest.raises(RunFailed, match=r"'wrong/sd3' is no LoRA.*did you mean wrong/sd"):
        client.run(graph)
    save_lora(
        folder / "deep.safetensors", lora(1, {layer.replace("blocks.1", "blocks.8"): (320, 768)}, 2, 2.0), "comfy"
    )
    graph = start() | {
        "merge": merge(files="wrong/deep"),
        "apply": {
            "class_type": "LikenessApplyMerged",
            "inputs": {"model": ["base", 0], "lora": ["merge", 0], "strength_model": 1.0},
        },
        "text": {"class_type": "PreviewAny", "inputs": {"source": ["apply", 2]}},
    }
    with pytest.raises(RunFailed, match=r"LikenessApplyMerged .*1 of the LoRA's 1 layers .*input_blocks\.8\."):
        client.run(graph)


def test_cancel(client: Client, base: Path) -> None:
    """Fails if a long merge cannot be stopped between layers, or shows no progress."""
    layers = {f"{UNET}.input_blocks.8.1.transformer_blocks.{n}.attn1.to_q": (1280, 1280) for n in range(40)}
    for name in ("one", "two"):
        save_lora(base / "models" / "loras" / "long" / f"{name}.safetensors", lora(1, layers, 4, 4.0), "comfy")
    seen: list[int] = []

    def stop(event: Event) -> None:
        if event.kind == "progress" and event.data["max"] == len(layers):
            seen.append(int(event.data["value"]))
            if len(seen) == 1:
                client.interrupt()

    with pytest.raises(Interrupted):
        client.run({"merge": merge(files="long/", method="ties")}, on_event=stop)
    assert seen and max(seen) < len(layers) / 2
