"""The host's own TrainLoraNode, run as the host runs it; only what it draws is replaced by the common stream.

What cannot be matched: it trains every layer that has a weight (no targets) and every bias and norm too, with alpha 1.
0.3.75 dies on one latent (`multi_res` is unbound), so it gets two, as a list; and its loss is the x0 error without a
weight, so step 1 is compared after division by σ², where the batch has one σ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import base_model
import torch
from gate import Gate
from stream import Stream

if TYPE_CHECKING:
    from contender import Job


def run(job: Job, stream: Stream, gate: Gate, patcher: Any) -> dict[str, Any]:
    import comfy_extras.nodes_train as host

    losses: list[float] = []
    own = host.TrainSampler.fwd_bwd

    def fed(
        self: Any, wrap: Any, sigmas: Any, noise: Any, latent: Any, cond: Any, picked: Any, *rest: Any, **more: Any
    ) -> Any:
        gate.step()
        i = len(losses)
        loss = own(
            self,
            wrap,
            stream.sigma[i].to(sigmas.device, copy=True),
            stream.noise[i].to(noise, copy=True),
            stream.x0[i].to(latent, copy=True),
            cond,
            stream.picture[i].tolist(),
            *rest,
            **more,
        )
        losses.append(float(loss.detach()) / float(stream.sigma[i][0]) ** 2 if job.model.batch == 1 else float("nan"))
        return loss

    host.TrainSampler.fwd_bwd = fed
    with torch.inference_mode():  # as the host executes nodes
        texts = list(zip(stream.text.clone(), stream.pooled.clone(), strict=True))
        latents = patcher.model.process_latent_out(stream.latents.clone())
    try:
        with torch.inference_mode():
            host.TrainLoraNode.execute(
                model=[patcher],
                latents=[{"samples": x[None]} for x in latents],
                positive=[base_model.conditioning(*text) for text in texts],
                batch_size=[job.model.batch],
                steps=[job.steps],
                grad_accumulation_steps=[1],
                learning_rate=[job.lr],
                rank=[job.rank],
                optimizer=["AdamW"],
                loss_function=["MSE"],
                seed=[job.seed],
                training_dtype=[job.base],
                lora_dtype=[job.base],
                algorithm=["LoRA"],
                gradient_checkpointing=[job.checkpointing],
                existing_lora=["[None]"],
            )
    finally:
        host.TrainSampler.fwd_bwd = own
    return {"losses": losses}
