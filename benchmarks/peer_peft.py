"""peft + diffusers, as diffusers' own LoRA training scripts do it, on the same tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import base_model
import models
import torch
from gate import Gate
from safetensors.torch import load_file, save_file
from stream import Stream, timestep

if TYPE_CHECKING:
    from contender import Job


def run(job: Job, stream: Stream, gate: Gate, unet: Any) -> dict[str, Any]:
    import diffusers
    from peft import LoraConfig

    make_scheduler: Any = diffusers.DDPMScheduler
    scheduler = make_scheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    layers = targets(unet, job.targets)
    make_config: Any = LoraConfig  # it says int, and takes a float as well
    unet.add_adapter(make_config(r=job.rank, lora_alpha=job.alpha, init_lora_weights=True, target_modules=layers))
    if job.files:
        _start_from(job, unet)
    if job.checkpointing:
        unet.enable_gradient_checkpointing()
    unet.train()
    params = [p for p in unet.parameters() if p.requires_grad]
    for parameter in params:  # beside a bf16 model they begin as bf16; diffusers' cast_training_params does this
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(params, lr=job.lr, betas=(0.9, 0.999), weight_decay=0.01, eps=1e-8)
    steps_of = [timestep(sigma, job.model.flow) for sigma in stream.sigma]
    losses: list[torch.Tensor] = []
    for i in range(job.steps):
        gate.step()
        x0, noise, t = stream.x0[i], stream.noise[i], steps_of[i]
        if job.model.flow:
            sigma = stream.sigma[i].view(-1, 1, 1, 1)
            noisy, target = (1.0 - sigma) * x0 + sigma * noise, noise - x0
        else:
            noisy, target = scheduler.add_noise(x0, noise, t), noise
        with torch.autocast(x0.device.type, torch.bfloat16, enabled=job.base == "bf16"):
            given = [each.to(unet.dtype) for each in (noisy, *stream.texts(i))]
            predicted = base_model.peer_forward(job.model, unet, given[0], t, *given[1:])
        loss = torch.nn.functional.mse_loss(predicted.float(), target.float(), reduction="mean")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    if not job.files:
        return {"losses": list(map(float, losses)), "layers": len(layers)}
    _export(job, unet)
    return {
        "losses": list(map(float, losses)),
        "layers": len(layers),
        "names": sorted(models.layers(job.model)[name] for name in layers),
    }


ATTENTION = (".to_q", ".to_k", ".to_v", ".to_out.0", ".to_qkv", ".to_added_qkv", ".to_add_out")


def targets(unet: Any, preset: str) -> list[str]:
    """Layer names of the preset: attention projections, or every Linear and Conv2d."""
    every = [n for n, m in unet.named_modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    if preset == "all":
        return every
    if preset == "attention":
        return [n for n in every if n.endswith(ATTENTION)]
    raise ValueError(f"targets {preset!r}: expected attention or all")


def _start_from(job: Job, unet: Any) -> None:
    """Put Likeness' first values into the adapters, where it left them, so that both runs are the same run."""
    if not job.init_file().is_file():
        return
    first, turns, modules = load_file(str(job.init_file())), models.turns(job.model), dict(unet.named_modules())
    for name, layer in models.layers(job.model).items():
        if f"{layer}.down" in first and name in modules:  # the table has two names for an SDXL's size embedding
            module = modules[name]
            with torch.no_grad():
                module.lora_A["default"].weight.copy_(first.pop(f"{layer}.down"))
                up = first.pop(f"{layer}.up")
                module.lora_B["default"].weight.copy_(turns[name](up) if name in turns else up)
    if first:
        raise ValueError(f"layers that the peer does not train: {sorted(first)[:4]}")


def _export(job: Job, unet: Any) -> None:
    """A file of the trained factors, in the scheme that Likeness writes: kohya's of an SD1.5, else the host's."""
    tensors, host, turns = {}, models.layers(job.model), models.turns(job.model)
    for name, module in unet.named_modules():
        if hasattr(module, "lora_A"):
            kohya = "lora_unet_" + name.replace(".", "_")
            layer = kohya if job.model.res_blocks else "diffusion_model." + host[name]
            tensors[layer + ".lora_down.weight"] = module.lora_A["default"].weight.detach().contiguous()
            up = module.lora_B["default"].weight.detach()
            tensors[layer + ".lora_up.weight"] = (turns[name](up) if name in turns else up).contiguous()
            tensors[layer + ".alpha"] = torch.tensor(float(job.alpha))
    save_file(tensors, str(job.path(job.name + ".safetensors")))
