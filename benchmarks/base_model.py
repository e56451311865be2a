"""The one base model that every contender trains: an SD1.5-family UNet with random weights, 176 million parameters.

It is made by diffusers (seeded), written once under the host's names, and read back by each contender: by the host's
own loader, or into a diffusers UNet through the host's own table of names (``comfy.utils.unet_to_diffusers``). So the
tensors are the same ones, and with SDPA the two networks' outputs differ by 0.0 (``train_step.py`` checks it).
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "model.diffusion_model."
LATENT = (4, 16, 16)
TEXT = (77, 768)
RES_BLOCKS = [1, 1, 1]
UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 640),
    "layers_per_block": 1,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3,
}
# The same in the words of the host's own table.
HOST_UNET: dict[str, Any] = {
    "num_res_blocks": RES_BLOCKS,
    "channel_mult": [1, 2, 2],
    "transformer_depth": [1, 1, 1],
    "transformer_depth_output": [1, 1, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
}


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


def diffusers_names() -> dict[str, str]:
    """diffusers tensor name -> host tensor name, by the host's own table."""
    import comfy.utils

    return dict(comfy.utils.unet_to_diffusers({k: list(v) if isinstance(v, list) else v for k, v in HOST_UNET.items()}))


def diffusers_layers() -> dict[str, str]:
    """diffusers layer name -> host layer name (without `diffusion_model.`)."""
    return {
        k.removesuffix(".weight"): v.removesuffix(".weight")
        for k, v in diffusers_names().items()
        if k.endswith(".weight")
    }


def write_weights(path: Path, seed: int) -> None:
    """Draw the weights and write them under the host's names."""
    import diffusers

    torch.manual_seed(seed)
    unet: Any = diffusers.UNet2DConditionModel(**UNET)  # type: ignore[no-untyped-call]
    names = diffusers_names()
    save_file({PREFIX + names[k]: v.contiguous() for k, v in unet.state_dict().items()}, str(path))


def load_in_host(path: Path) -> Any:
    """A MODEL of the host (a ModelPatcher), fp32, on the CPU, its parameters frozen."""
    import comfy.sd

    with torch.inference_mode(False):
        patcher = comfy.sd.load_diffusion_model_state_dict(load_file(str(path)), model_options={"dtype": torch.float32})
    if patcher is None:
        raise ValueError("the host did not recognise the benchmark's UNet: compare HOST_UNET with its model_detection")
    patcher.model.requires_grad_(False)
    patcher.model.eval()
    return patcher


def load_in_diffusers(path: Path) -> Any:
    """The same tensors in a diffusers UNet, fp32, frozen."""
    import diffusers

    with torch.device("meta"):
        unet: Any = diffusers.UNet2DConditionModel(**UNET)  # type: ignore[no-untyped-call]
    unet.to_empty(device="cpu")
    theirs = load_file(str(path))
    names = diffusers_names()
    tensors: dict[str, Tensor] = {k: theirs[PREFIX + names[k]] for k in unet.state_dict()}
    unet.load_state_dict(tensors, strict=True)
    unet.requires_grad_(False)
    unet.eval()
    return unet
