"""Likeness: `trainers.loop.train` through the one Denoiser of `nodes/host`, as LikenessTrainLoRA runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import base_model
import torch
from gate import Gate
from models import Model
from safetensors.torch import save_file
from stream import Stream, cached
from torch import Tensor, nn

if TYPE_CHECKING:
    from contender import Job

SAME = {"max_grad_norm": 0.0, "weight_decay": 0.01, "timestep_sampling": "uniform"}
"""What the peers do: no clipping (the built-in node has none), torch's AdamW defaults, uniform σ."""


class Watched:
    """A Denoiser that stops at the gate before each prediction, and notes what the trainer drew."""

    def __init__(self, denoiser: Any, gate: Gate, init_file: Path | None) -> None:
        self._denoiser, self._gate, self._init_file = denoiser, gate, init_file
        self.module: nn.Module = denoiser.module
        self.parameterisation = denoiser.parameterisation
        self.sigmas: Tensor = denoiser.sigmas
        self.device: torch.device = denoiser.device
        self.sigma: list[Tensor] = []
        self.first_noise: Tensor | None = None

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        self.sigma.append(sigma.clone())
        if self.first_noise is None:
            self.first_noise = noise.detach().clone()
        noisy: Tensor = self._denoiser.noise_scaling(sigma, noise, latents)
        return noisy

    def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        if self._init_file is not None and not self._init_file.is_file():
            save_file(adapters(self.module), str(self._init_file))
        self._gate.step()
        x0: Tensor = self._denoiser.denoise(noisy, sigma, conds)
        return x0


def adapters(module: nn.Module) -> dict[str, Tensor]:
    """host layer name + .down / .up -> the factors that peft put into the module."""
    found = {}
    for name, layer in module.named_modules():
        for key in getattr(layer, "lora_A", {}):
            found[f"{name}.down"] = layer.lora_A[key].weight.detach().clone().contiguous()
            found[f"{name}.up"] = layer.lora_B[key].weight.detach().clone().contiguous()
    return found


def run(job: Job, stream: Stream, gate: Gate, patcher: Any) -> dict[str, Any]:
    import comfy.model_management

    from likeness.lora.files import write_safetensors
    from likeness.lora.keys import from_deltas, rename
    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors
    from likeness.nodes.host.conditioning import detach_cond, make_cond
    from likeness.nodes.host.memory import estimated, loading_memory
    from likeness.trainers.config import TrainingConfig
    from likeness.trainers.dataset import Example, TrainingSet
    from likeness.trainers.loop import train
    from likeness.trainers.outcome import Callbacks

    config = TrainingConfig(
        steps=job.steps,
        learning_rate=job.lr,
        rank=job.rank,
        alpha=job.alpha,
        seed=job.seed,
        targets=job.targets,
        batch_size=job.model.batch,
        gradient_checkpointing=job.checkpointing,
        **SAME,
        **job.options,
    )
    if job.who == "Likeness adaptive":  # the same mean rank, as far as it stays there
        config = replace(config, algorithm="adaptive", target_rank=job.rank)
    with ordinary_tensors():
        conds = [
            detach_cond(make_cond(patcher, base_model.conditioning(*text), latents[None], {}), patcher.load_device)
            for *text, latents in zip(stream.text, stream.pooled, stream.latents, strict=True)
        ]
        examples = tuple(
            Example(latents=x, flipped=None, cond=cond, mask=None)
            for x, cond in zip(stream.latents, conds, strict=True)
        )
        data = TrainingSet(examples=examples, empty=conds[0])
    # As the node does it.
    needed, estimate = loading_memory(patcher, data, config)
    comfy.model_management.load_models_gpu([patcher], needed)
    away = patcher.model_size() - patcher.loaded_size()
    with ordinary_tensors(), autograd_weights(patcher.model), tempfile.TemporaryDirectory() as folder:
        host = HostDenoiser(patcher)
        denoiser = Watched(host, gate, job.init_file() if job.files else None)
        if not job.files:
            estimate = estimate or estimated(host, data, config)
        result = train(denoiser, data, config, Path(folder), Callbacks())
    if not job.files:
        return {
            "losses": list(result.losses),
            "layers": len(result.deltas),
            "notes": [
                *result.notes,
                *([f"the host left {away / (1 << 20):.0f} MiB in main memory"] if away > 0 else []),
            ],
            "estimate_gib": estimate and estimate.total(config) / (1 << 30),
        }
    deltas, blocks = from_deltas(result.deltas), job.model.res_blocks
    named = rename(deltas, "kohya", blocks) if blocks else rename(deltas, "comfy")
    write_safetensors(job.path(job.name + ".safetensors"), named, {})
    assert denoiser.first_noise is not None
    drawn = float((torch.stack(denoiser.sigma) - stream.sigma).abs().max())
    return {
        "losses": list(result.losses),
        "layers": len(result.deltas),
        "names": sorted(name.removeprefix("diffusion_model.") for name in result.deltas),
        "mean_rank": fmean(record.get("mean_rank", job.rank) for record in result.records),
        "stream_differs_by": max(drawn, float((denoiser.first_noise - stream.noise[0]).abs().max())),
    }


class _Recorder:
    """The smallest Denoiser: it predicts with one layer, and writes down what it is asked."""

    def __init__(self, model: Model) -> None:
        import comfy.model_sampling
        import comfy.supported_models

        width = model.latent[-1]
        self.module = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(width, width)})})
        self.parameterisation = "flow" if model.flow else "eps"
        known = comfy.model_sampling
        flow = known.ModelSamplingFlux if model.kind == "Flux" else known.ModelSamplingDiscreteFlow
        sampling = flow if model.flow else known.ModelSamplingDiscrete
        self.sigmas = sampling(getattr(comfy.supported_models, model.kind)({})).sigmas
        self.device = torch.device("cpu")
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        self.asked.append((sigma.clone(), noise.clone(), latents.clone()))
        level = sigma.view(-1, 1, 1, 1)
        return latents * (1 - level if self.parameterisation == "flow" else 1) + level * noise

    def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        predicted: Tensor = self.module["attn1"].to_q(noisy)  # type: ignore[operator]
        return predicted


def draw_stream(model: Model, steps: int, seed: int) -> Stream:
    """What Likeness' loop draws in `steps` steps, by running it on a network of one layer."""
    from likeness.trainers.config import TrainingConfig
    from likeness.trainers.dataset import Example, TrainingSet
    from likeness.trainers.loop import train
    from likeness.trainers.outcome import Callbacks

    latents, text, pooled = cached(model, seed)
    recorder = _Recorder(model)
    examples = tuple(Example(latents=x, flipped=None, cond=i, mask=None) for i, x in enumerate(latents))
    config = TrainingConfig(
        steps=steps,
        learning_rate=1e-6,
        rank=1,
        alpha=1.0,
        seed=seed,
        targets="attention",
        batch_size=model.batch,
        **SAME,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(recorder, TrainingSet(examples=examples, empty=0), config, Path(folder), Callbacks())
    sigma, noise, x0 = (torch.stack(parts) for parts in zip(*recorder.asked, strict=True))
    picture = (x0[:, :, None] - latents[None, None]).abs().flatten(3).sum(3).argmin(2)
    return Stream(x0=x0, noise=noise, sigma=sigma, picture=picture, latents=latents, text=text, pooled=pooled)
