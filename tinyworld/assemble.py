"""Put shipped weights together as an ordinary checkpoint: `python -m tinyworld.assemble <models/checkpoints>`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .mmdit import host_weights
from .packing import unpack
from .text_encoder import TextEncoder, checkpoint_text, load_encoder

WEIGHTS = Path(__file__).with_name("weights")
TEXT = "tiny-clip.safetensors"  # both models' text encoder
Weights = dict[str, Tensor]


def checkpoint_tensors(unet: Weights, vae: Weights, encoder: TextEncoder) -> Weights:
    """UNet, text encoder and VAE under the names of an SD1.5 checkpoint; fp16, the VAE's scale and shift fp32."""
    text = checkpoint_text(encoder)
    return {
        **{f"model.diffusion_model.{name}": t.to(torch.float16).contiguous() for name, t in unet.items()},
        **{f"cond_stage_model.transformer.{name}": t.contiguous() for name, t in text.items()},
        **{f"first_stage_model.{name}": t.contiguous() for name, t in vae.items()},
    }


def sd3_checkpoint_tensors(mmdit: Weights, vae: Weights, encoder: TextEncoder) -> Weights:
    """The same for SD3, with CLIP-L as its one text encoder: the host takes the others' outputs for zeros."""
    text = checkpoint_text(encoder, pooling=True)
    return {
        **{
            f"model.diffusion_model.{name}": t.to(torch.float16).contiguous() for name, t in host_weights(mmdit).items()
        },
        **{f"text_encoders.clip_l.transformer.{name}": t.contiguous() for name, t in text.items()},
        **{f"first_stage_model.{name}": t.contiguous() for name, t in vae.items()},
    }


# model -> its autoencoder's file, and how the parts are put together
MODELS: dict[str, tuple[str, Callable[[Weights, Weights, TextEncoder], Weights]]] = {
    "tiny-unet": ("tiny-vae.safetensors", checkpoint_tensors),
    "tiny-mmdit": ("tiny-mmdit-vae.safetensors", sd3_checkpoint_tensors),
}


def assemble(folder: Path, weights: Path = WEIGHTS, model: str = "tiny-unet") -> Path:
    """Write `<model>.safetensors` (about 300 MB) into a checkpoints folder, unless one newer than its parts is there.

    Raises:
        ValueError: no such model, or its weights are not there.
    """
    if model not in MODELS:
        raise ValueError(f"there is no model {model!r}; the models are {', '.join(MODELS)}")
    vae, together = MODELS[model]
    parts = weights / f"{model}.safetensors", weights / vae, weights / TEXT
    for part in parts:
        if not part.exists():
            raise ValueError(f"{part.name} is missing from {weights}: the clone is incomplete; fetch it again")
    target = folder / f"{model}.safetensors"
    if target.exists() and target.stat().st_mtime >= max(part.stat().st_mtime for part in parts):
        return target
    folder.mkdir(parents=True, exist_ok=True)
    tensors = together(unpack(load_file(parts[0])), load_file(parts[1]), load_encoder(load_file(parts[2])))
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(tensors, temporary, {"format": "pt"})
    temporary.replace(target)
    return target


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the host's models/checkpoints folder")
    parser.add_argument("--model", choices=list(MODELS), default="tiny-unet")
    options = parser.parse_args()
    assemble(options.folder, model=options.model)
