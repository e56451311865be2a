"""The floor: what no trainer of this model can go below, forward and input gradient of the frozen model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from gate import Gate
from stream import Stream

if TYPE_CHECKING:
    from contender import Job


def run(job: Job, stream: Stream, gate: Gate, patcher: Any) -> dict[str, Any]:
    base = patcher.model
    losses = []
    for i in range(job.steps):
        gate.step()
        sigma = stream.sigma[i : i + 1]
        x0, noise = stream.x0[i : i + 1], stream.noise[i : i + 1]
        noisy = base.model_sampling.noise_scaling(sigma, noise, x0).requires_grad_(True)
        text = stream.text[int(stream.picture[i])][None]
        predicted = base.apply_model(noisy, sigma, c_crossattn=text)
        loss = torch.nn.functional.mse_loss(predicted, x0) / sigma.square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
    return {"losses": losses}
