"""Likeness: `trainers.loop.train` through the one Denoiser of `nodes/host`, as LikenessTrainLoRA runs it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import base_model
import torch
from gate import Gate
from safetensors.torch import save_file
from stream import Stream, cached
from torch import Tensor, nn

if TYPE_CHECKING:
    from contender import Job

SAME = {"max_grad_norm": 0.0, "weight_decay": 0.01, "batch_size": 1, "timestep_sampling": "uniform"}
"""What the peers do: no clipping (the built-in node has none), torch's AdamW defaults, uniform σ."""


class Watched:
    """A Denoiser that stops at the gate before each prediction, and notes what the trainer drew."""

    def __init__(self, denoiser: Any, gate: Gate, init_file: Path) -> None:
        self._denoiser, self._gate, self._init_file = denoiser, gate, init_file
        self.module: nn.Module = denoiser.module
        self.parameterisation = denoiser.parameterisation
        self.sigmas: Tensor = denoiser.sigmas
        self.device: torch.device = denoiser.device
        self.sigma: list[float] = []
        self.first_noise: Tensor | None = None

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        self.sigma.append(float(sigma))
        if self.first_noise is None:
            self.first_noise = noise.detach().clone()
        noisy: Tensor = self._denoiser.noise_scaling(sigma, noise, latents)
        return noisy

    def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        if not self._init_file.is_file():
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
    from likeness.trainers.config import TrainingConfig
    from likeness.trainers.dataset import Example, TrainingSet
    from likeness.trainers.loop import Callbacks, train

    comfy.model_management.load_models_gpu([patcher])
    config = TrainingConfig(
        steps=job.steps,
        learning_rate=job.lr,
        rank=job.rank,
        alpha=job.alpha,
        seed=job.seed,
        targets=job.targets,
        gradient_checkpointing=job.checkpointing,
        **SAME,
    )
    with ordinary_tensors(), autograd_weights(patcher.model), tempfile.TemporaryDirectory() as folder:
        denoiser = Watched(HostDenoiser(patcher), gate, job.init_file())
        conds = [
            detach_cond(make_cond(patcher, [[text[None], {}]], latents[None], {}), denoiser.device)
            for text, latents in zip(stream.text, stream.latents, strict=True)
        ]
        examples = tuple(
            Example(latents=x, flipped=None, cond=cond, mask=None)
            for x, cond in zip(stream.latents, conds, strict=True)
        )
        result = train(denoiser, TrainingSet(examples=examples, empty=conds[0]), config, Path(folder), Callbacks())
    named = rename(from_deltas(result.deltas), "kohya", base_model.RES_BLOCKS)
    write_safetensors(job.path(job.name + ".safetensors"), named, {})
    assert denoiser.first_noise is not None
    drawn = max(abs(a - float(b)) for a, b in zip(denoiser.sigma, stream.sigma, strict=True))
    return {
        "losses": list(result.losses),
        "layers": len(result.deltas),
        "names": sorted(name.removeprefix("diffusion_model.") for name in result.deltas),
        "stream_differs_by": max(drawn, float((denoiser.first_noise - stream.noise[:1]).abs().max())),
    }


class _Recorder:
    """The smallest Denoiser: it predicts with one layer, and writes down what it is asked."""

    def __init__(self) -> None:
        import comfy.model_sampling

        self.module = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(16, 16)})})
        self.parameterisation = "eps"
        self.sigmas = comfy.model_sampling.ModelSamplingDiscrete().sigmas
        self.device = torch.device("cpu")
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latents: Tensor) -> Tensor:
        self.asked.append((sigma.clone(), noise.clone(), latents.clone()))
        return latents + sigma.view(-1, 1, 1, 1) * noise

    def denoise(self, noisy: Tensor, sigma: Tensor, conds: Sequence[Any]) -> Tensor:
        predicted: Tensor = self.module["attn1"].to_q(noisy)  # type: ignore[operator]
        return predicted


def draw_stream(steps: int, seed: int) -> Stream:
    """What Likeness' loop draws in `steps` steps, by running it on a network of one layer."""
    from likeness.trainers.config import TrainingConfig
    from likeness.trainers.dataset import Example, TrainingSet
    from likeness.trainers.loop import Callbacks, train

    latents, text = cached(seed)
    recorder = _Recorder()
    examples = tuple(Example(latents=x, flipped=None, cond=i, mask=None) for i, x in enumerate(latents))
    config = TrainingConfig(steps=steps, learning_rate=1e-6, rank=1, alpha=1.0, seed=seed, targets="attention", **SAME)
    with tempfile.TemporaryDirectory() as folder:
        train(recorder, TrainingSet(examples=examples, empty=0), config, Path(folder), Callbacks())
    sigma, noise, x0 = (torch.cat(parts) for parts in zip(*recorder.asked, strict=True))
    picture = (x0[:, None] - latents[None]).abs().flatten(2).sum(2).argmin(1)
    return Stream(x0=x0, noise=noise, sigma=sigma, picture=picture, latents=latents, text=text)
