"""Do the contenders compute the same thing? Networks before training, and exported files in a fresh load."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import base_model
import torch
from gate import Gate
from safetensors.torch import load_file
from stream import Stream, timestep
from torch import Tensor

if TYPE_CHECKING:
    from contender import Job


@torch.no_grad()
def run(job: Job, stream: Stream, gate: Gate, patcher: Any) -> dict[str, Any]:
    """Outputs of the host's model with each exported file in it, by the host's own LoRA loader.

    Returns: `networks`, the largest difference of the two bare networks, in standard deviations of the output;
    `effect`, how far Likeness' LoRA moves the output; `exports`, how far the peer's moves it elsewhere, as a share of
    that; `unmatched`, keys the host refused.
    """
    base, peer = patcher.model, base_model.load_in_diffusers(job.model, job.path("weights.safetensors"))
    sigma, x0, noise = stream.sigma[0], stream.x0[0], stream.noise[0]
    texts, t = stream.texts(0), timestep(sigma, job.model.flow)
    arguments = base_model.host_arguments(patcher, *texts, x0)
    arguments["context"] = arguments.pop("c_crossattn")
    scaled = base.model_sampling.calculate_input(sigma, base.model_sampling.noise_scaling(sigma, noise, x0))
    theirs = base_model.peer_forward(job.model, peer, scaled, t, *texts)
    bare = base.diffusion_model(scaled, t.float(), **arguments)
    outputs: dict[str, Tensor] = {}
    unmatched: dict[str, int] = {}
    mode = "ckpt" if job.checkpointing else "plain"
    for who in ("Likeness", "peft+diffusers"):
        tensors = load_file(str(job.path(f"{who}-{job.targets}-{mode}.safetensors")))
        with_lora, unmatched[who] = _loaded(patcher, tensors)
        outputs[who] = with_lora.model.diffusion_model(scaled, t.float(), **arguments)
        with_lora.unpatch_model()
    effect = float((outputs["Likeness"] - bare).norm())
    return {
        "networks": float((bare - theirs).abs().max() / bare.std()),
        "effect": effect / float(bare.norm()),
        "exports": float((outputs["Likeness"] - outputs["peft+diffusers"]).norm()) / effect,
        "unmatched": sum(unmatched.values()),
    }


def _loaded(patcher: Any, tensors: dict[str, Tensor]) -> tuple[Any, int]:
    """The model with the file's LoRA patched in, and how many of its tensors the host does not know."""
    import comfy.lora
    import comfy.model_management

    keys = comfy.lora.model_lora_keys_unet(patcher.model, {})
    patches = comfy.lora.load_lora(dict(tensors), keys, log_missing=False)
    used = {key for patch in patches.values() for key in patch.loaded_keys}
    with_lora = patcher.clone()
    with_lora.add_patches(patches, 1.0)
    with_lora.patch_model()
    return with_lora, len(set(tensors) - used)
