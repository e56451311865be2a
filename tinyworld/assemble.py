"""Put the shipped weights together as an ordinary checkpoint: `python -m tinyworld.assemble <models/checkpoints>`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .packing import unpack
from .text import clip_weights

WEIGHTS = Path(__file__).with_name("weights")
NAME = "tiny-unet.safetensors"


def checkpoint_tensors(unet: dict[str, Tensor], vae: dict[str, Tensor], ids: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """UNet, text encoder and VAE under the names of an SD1.5 checkpoint; fp16, the VAE's scale and shift fp32."""
    text = clip_weights(ids, rows)
    return {
        **{f"model.diffusion_model.{name}": t.to(torch.float16).contiguous() for name, t in unet.items()},
        **{f"cond_stage_model.transformer.{name}": t.contiguous() for name, t in text.items()},
        **{f"first_stage_model.{name}": t.contiguous() for name, t in vae.items()},
    }


def assemble(folder: Path, weights: Path = WEIGHTS) -> Path:
    """Write `tiny-unet.safetensors` (320 MB) into a checkpoints folder, unless it is there and newer than its parts."""
    parts = weights / "tiny-unet.safetensors", weights / "tiny-vae.safetensors"
    for part in parts:
        if not part.exists():
            raise ValueError(f"{part.name} is missing from {weights}: the clone is incomplete; fetch it again")
    target = folder / NAME
    if target.exists() and target.stat().st_mtime >= max(part.stat().st_mtime for part in parts):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    packed = load_file(parts[0])
    ids, rows = packed.pop("token_ids"), packed.pop("token_rows")
    temporary = target.with_name(f".{NAME}.{os.getpid()}")
    save_file(checkpoint_tensors(unpack(packed), load_file(parts[1]), ids, rows), temporary, {"format": "pt"})
    temporary.replace(target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the host's models/checkpoints folder")
    assemble(parser.parse_args().folder)
