"""The base model that every contender trains: made by diffusers, written once under the host's names, read by each.

It is read by the host's own classes, or into diffusers' model through the host's own table of names. So the tensors
are the same ones, and with SDPA the two networks' outputs agree (``train_step.py`` checks it).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
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


def open_host(device: str = "cpu") -> None:
    """Make the host importable as its `main.py --use-pytorch-cross-attention` would be, with `--cpu` on a CPU."""
    folder = str(host_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    # diffusers and transformers look for a model hub at import; nothing here may go out.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import comfy.cli_args

    comfy.cli_args.args.cpu = device == "cpu"
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


def peer_class(model: Model) -> Any:
    """Its class in diffusers."""
    import diffusers

    return getattr(diffusers, model.peer)


def write_weights(model: Model, path: Path, seed: int) -> int:
    """Draw the weights and write them under the host's names; returns how many numbers they are."""
    torch.manual_seed(seed)
    tensors = under_host_names(model, peer_class(model)(**model.config).state_dict())
    save_file(tensors, str(path))
    return sum(tensor.numel() for tensor in tensors.values())


def under_host_names(model: Model, theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of diffusers' model as the host's; of tensors on the device meta too."""
    table = names(model)
    parts: dict[str, list[tuple[int, Tensor]]] = {}
    for key, tensor in theirs.items():
        entry = table[key]
        start = entry.rows[0] if entry.rows else 0
        parts.setdefault(entry.name, []).append((start, entry.turn(tensor) if entry.turn else tensor))
    return {
        name: torch.cat([tensor for _, tensor in sorted(found, key=lambda part: part[0])]).contiguous()
        for name, found in parts.items()
    }


def load_in_host(model: Model, path: Path) -> Any:
    """A MODEL of the host (a ModelPatcher), fp32, on the CPU, its parameters frozen."""
    tensors = load_file(str(path))
    made = made_in_host(model, tensors, torch.device("cpu"), torch.float32)
    made.diffusion_model.load_state_dict(tensors, strict=True)
    return as_model(made, torch.device("cpu"))


def made_in_host(
    model: Model,
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    compute: torch.dtype | None = None,
) -> Any:
    """The host's model with room for these tensors; compute: None = in their dtype."""
    import comfy.model_detection
    import comfy.supported_models

    # Made directly: by its own detection the host takes a model with fewer blocks than the real one for none it knows.
    found = comfy.model_detection.detect_unet_config(tensors, "")
    blocks = {key: value for key, value in model.host.items() if key == "num_blocks"}
    with torch.inference_mode(False):
        config = getattr(comfy.supported_models, model.kind)({**found, **blocks, **model.unet, "dtype": dtype})
        config.set_inference_dtype(dtype, compute)
        return config.get_model({}, "", device=device)


def as_model(made: Any, device: torch.device) -> Any:
    """The host's model as its MODEL (a ModelPatcher), frozen."""
    import comfy.model_patcher

    made.requires_grad_(False)
    made.eval()
    return comfy.model_patcher.ModelPatcher(made, load_device=device, offload_device=torch.device("cpu"))


def load_in_diffusers(model: Model, path: Path) -> Any:
    """The same tensors in diffusers' model, fp32, frozen."""
    kind = peer_class(model)
    with torch.device("meta"):
        peer = kind(**model.config)
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
    """One picture's text (tokens, width) and pooled text (width,) as the host's CONDITIONING, of guidance 1."""
    return [[text[None], {"guidance": 1.0, **({"pooled_output": pooled[None]} if pooled.numel() else {})}]]


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
        guidance=1.0,
        **({"pooled_output": pooled} if pooled.numel() else {}),
    )
    return {name: cond.cond for name, cond in conds.items()}


def peer_forward(model: Model, peer: Any, noisy: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    """diffusers' model, as its training scripts call it: noisy (B, C, H, W), t (B,), text and pooled as above."""
    if model.kind == "Flux":
        return _flux_forward(peer, noisy, t, text, pooled)
    if model.flow:
        out = peer(
            hidden_states=noisy, timestep=t, encoder_hidden_states=text, pooled_projections=pooled, return_dict=False
        )
    else:
        height, width = (8 * side for side in noisy.shape[-2:])
        ids = torch.tensor([[height, width, 0, 0, height, width]] * len(noisy), dtype=noisy.dtype, device=noisy.device)
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}} if model.pooled else {}
        out = peer(noisy, t, encoder_hidden_states=text, return_dict=False, **more)
    result: Tensor = out[0]
    return result


def _flux_forward(peer: Any, noisy: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    """Of 2×2 patches, with positions of rows and columns, at guidance 1."""
    batch, channels, height, width = noisy.shape
    rows, columns = height // 2, width // 2
    tokens = noisy.view(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    places = torch.zeros(rows, columns, 3, device=noisy.device, dtype=noisy.dtype)
    places[..., 1] = torch.arange(rows, device=noisy.device)[:, None]
    places[..., 2] = torch.arange(columns, device=noisy.device)[None]
    out = peer(
        hidden_states=tokens,
        timestep=t / 1000,
        guidance=torch.ones(batch, device=noisy.device),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
        img_ids=places.flatten(0, 1),
        return_dict=False,
    )[0]
    patches = out.view(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(noisy.shape)
