"""The floor: what no trainer of this model can go below, forward and input gradient of the frozen model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import base_model
from gate import Gate
from stream import Stream

if TYPE_CHECKING:
    from contender import Job


def run(job: Job, stream: Stream, gate: Gate, patcher: Any) -> dict[str, Any]:
    base = patcher.model
    losses = []
    for i in range(job.steps):
        gate.step()
        sigma, x0, noise = stream.sigma[i], stream.x0[i], stream.noise[i]
        noisy = base.model_sampling.noise_scaling(sigma, noise, x0).requires_grad_(True)
        predicted = base.apply_model(noisy, sigma, **base_model.host_arguments(patcher, *stream.texts(i), x0))
        loss = ((predicted - x0) / sigma.view(-1, 1, 1, 1)).square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
    return {"losses": losses}
