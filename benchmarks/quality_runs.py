"""The training runs of time_to_quality.py: by the host's node, or by ours. The clock stands while they are judged."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from quality_world import Clock, Score, World

Rung = dict[str, float]
"""steps, wall and cpu seconds of training so far, and the fields of a Score."""


def _rung(steps: int, clock: Clock, score: Score) -> Rung:
    wall, cpu = clock.read()
    return {"steps": steps, "wall": wall, "cpu": cpu, **score.as_dict()}


def built_in(world: World, learning_rate: float, steps: int, dtype: str = "fp32", rank: int = 8) -> list[Rung]:
    """The host's VAEEncode, CLIPTextEncode and TrainLoraNode at its defaults but for speed, and its LoraModelLoader.

    No checkpointing and fp32, both of which make it faster here, and the latter better too.
    """
    import comfy_extras.nodes_train as host

    clock = Clock()
    with clock.running(), torch.inference_mode():  # as the host executes nodes
        torch.manual_seed(0)  # its adapters' first values, its σ and its order come from the global generator
        latents = [{"samples": world.vae.encode(picture[None].permute(0, 2, 3, 1))} for picture in world.references]
        texts = [path.with_suffix(".txt").read_text().strip() for path in world.reference_files]
        found = host.TrainLoraNode.execute(
            model=[world.model],
            latents=latents,
            positive=[world.encoded(text) for text in texts],
            batch_size=[1],
            steps=[steps],
            grad_accumulation_steps=[1],
            learning_rate=[learning_rate],
            rank=[rank],
            optimizer=["AdamW"],
            loss_function=["MSE"],
            seed=[0],
            training_dtype=[dtype],
            lora_dtype=[dtype],
            algorithm=["LoRA"],
            gradient_checkpointing=[False],
            existing_lora=["[None]"],
        )
    lora = {name: tensor.detach().clone() for name, tensor in found.args[1].items()}
    del found
    gc.collect()
    with torch.inference_mode():
        patched = host.LoraModelLoader.execute(world.model, lora, 1.0).args[0]
        return [_rung(steps, clock, world.score(patched, others=True))]


def ours(world: World, config: Any, ladder: Sequence[int], prior: Any = None) -> list[Rung]:
    """LikenessTrainLoRA as its node runs it, once for each of the ladder's numbers of steps, judged at its end.

    Runs of their own, not one run judged on its way: the learning rate and its schedule go by the steps of the whole.
    """
    from dataclasses import replace

    from likeness.nodes.host import session
    from likeness.trainers.dataset import load_folder

    rungs = list[Rung]()
    for steps in ladder:
        clock = Clock()
        with clock.running():
            pictures = load_folder(
                world.reference_files[0].parent,
                trigger="sks",
                class_noun="",
                caption_template="a picture of a {trigger}",
                resolution=64,
            )
            chosen = replace(config, steps=steps)
            trained = session.train_lora(world.model, world.clip, world.vae, pictures, chosen, prior=prior)
        with torch.inference_mode():
            rungs.append(_rung(steps, clock, world.score(trained.model, others=True)))
        del trained
        gc.collect()
    return rungs
