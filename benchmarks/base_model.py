"""The base model that every contender trains: made by diffusers, written once under the host's names, read by each.

It is read by the host's own classes, or into diffusers' model through the host's own table of names. So the tensors
are the same ones, and with SDPA the two networks' outputs agree (``train_step.py`` checks it).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from models import Model, names
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent


def host_folder() -> Path:
    """The unpacked ComfyUI: COMFYUI_PATH, else .host/ComfyUI. Raises ValueError where there is none."""
    folder = Path(os.environ.get("COMFYUI_PATH") or ROOT / ".host" / "ComfyUI")
    if not (folder / "comfy_extras" / "nodes_train.py").is_file():
        raise ValueError(
            f"no ComfyUI with comfy_extras/nodes_train.py at {folder}: run ./test --setup-only or set "
            "COMFYUI_PATH to an unpacked ComfyUI >= 0.3.75"
        )
    return folder


def open_host() -> None:
    """Make the host importable as its `main.py --cpu --use-pytorch-cross-attention` would be."""
    folder = str(host_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # diffusers and transformers look for a model hub at import; nothing here may go out.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import comfy.cli_args

    comfy.cli_args.args.cpu = True
    comfy.cli_args.args.use_pytorch_cross_attention = True


def open_pack() -> ModuleType:
    """Load this repository once under the alias `likeness`, as the tests do (the host uses its path as the name)."""
    if "likeness" in sys.modules:
        return sys.modules["likeness"]
    spec = importlib.util.spec_from_file_location(
        "likeness", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules["likeness"] = pack
    spec.loader.exec_module(pack)
    return pack


def _peer_class(model: Model) -> Any:
    import diffusers

    return getattr(diffusers, model.peer)


def write_weights(model: Model, path: Path, seed: int) -> int:
    """Draw the weights and write them under the host's names; returns how many numbers they are."""
    torch.manual_seed(seed)
    peer = _peer_class(model)(**model.config)
    table = names(model)
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for key, tensor in peer.state_dict().items():
        entry = table[key]
        start = entry.rows[0] if entry.rows else 0
        parts.setdefault(entry.name, []).append((start, entry.turn(tensor) if entry.turn else tensor))
    tensors = {
        name: torch.cat([tensor for _, tensor in sorted(found, key=lambda part: part[0])]).contiguous()
        for name, found in parts.items()
    }
    save_file(tensors, str(path))
    return sum(tensor.numel() for tensor in tensors.values())


def load_in_host(model: Model, path: Path) -> Any:
    """A MODEL of the host (a ModelPatcher), fp32, on the CPU, its parameters frozen."""
    import comfy.model_detection
    import comfy.model_patcher
    import comfy.supported_models

    # Made directly: by its own detection the host takes a model with fewer blocks than the real one for none it knows.
    tensors, device = load_file(str(path)), torch.device("cpu")
    found = comfy.model_detection.detect_unet_config(tensors, "")
    blocks = {key: value for key, value in model.host.items() if key == "num_blocks"}
    with torch.inference_mode(False):
        config = getattr(comfy.supported_models, model.kind)({**found, **blocks, "dtype": torch.float32})
        config.set_inference_dtype(torch.float32, None)
        made = config.get_model({}, "", device=device)
        made.diffusion_model.load_state_dict(tensors, strict=True)
    made.requires_grad_(False)
    made.eval()
    return comfy.model_patcher.ModelPatcher(made, load_device=device, offload_device=device)


def load_in_diffusers(model: Model, path: Path) -> Any:
    """The same tensors in diffusers' model, fp32, frozen."""
    with torch.device("meta"):
        peer = _peer_class(model)(**model.config)
    peer.to_empty(device="cpu")
    theirs, table = load_file(str(path)), names(model)
    tensors: dict[str, Tensor] = {}
    for key in peer.state_dict():
        entry = table[key]
        tensor = theirs[entry.name]
        if entry.rows is not None:
            tensor = tensor.narrow(0, *entry.rows)
        tensors[key] = entry.turn(tensor) if entry.turn else tensor
    peer.load_state_dict(tensors, strict=True)
    peer.requires_grad_(False)
    if hasattr(peer, "fuse_qkv_projections") and model.flow:
        # Layers as the host has them, q, k and v in one: so both train the same matrices.
        peer.fuse_qkv_projections()
        for block in peer.transformer_blocks:
            for name in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"):
                delattr(block.attn, name)
    peer.eval()
    return peer


def conditioning(text: Tensor, pooled: Tensor) -> list[list[Any]]:
    """One picture's text (tokens, width) and pooled text (width,) as the host's CONDITIONING."""
    return [[text[None], {"pooled_output": pooled[None]} if pooled.numel() else {}]]


def host_arguments(patcher: Any, text: Tensor, pooled: Tensor, noise: Tensor) -> dict[str, Tensor]:
    """What `apply_model` takes besides: of texts (B, tokens, width), pooled (B, width) and latents (B, C, H, W)."""
    height, width = (8 * side for side in noise.shape[-2:])
    conds = patcher.model.extra_conds(
        noise=noise,
        device=noise.device,
        cross_attn=text,
        width=width,
        height=height,
        prompt_type="positive",
        **({"pooled_output": pooled} if pooled.numel() else {}),
    )
    return {name: cond.cond for name, cond in conds.items()}


def peer_forward(model: Model, peer: Any, noisy: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    """diffusers' model, as its training scripts call it: noisy (B, C, H, W), t (B,), text and pooled as above."""
    if model.flow:
        out = peer(
            hidden_states=noisy, timestep=t, encoder_hidden_states=text, pooled_projections=pooled, return_dict=False
        )
    else:
        height, width = (8 * side for side in noisy.shape[-2:])
        ids = torch.tensor([[height, width, 0, 0, height, width]] * len(noisy), dtype=noisy.dtype)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}} if model.pooled else {}
        out = peer(noisy, t, encoder_hidden_states=text, return_dict=False, **more)
    result: Tensor = out[0]
    return result
