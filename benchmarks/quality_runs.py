"""One training run of time_to_quality.py: by the host's node, or by ours, with its clock stopped while it is judged."""

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
    """LikenessTrainLoRA as its node runs it, up to the ladder's last step.

    The sheet of sample pictures, which the loop asks for at a step of its own choice, is where the model is judged,
    with the adapters in place and the clock stopped.
    """
    from dataclasses import replace

    from PIL import Image

    from likeness.nodes.host import previews, session
    from likeness.nodes.types import Samples
    from likeness.trainers.dataset import load_folder

    clock, rungs = Clock(), list[Rung]()
    every = ladder[0]
    if any(step % every for step in ladder):
        raise ValueError(f"the ladder {tuple(ladder)} must go up in multiples of its first step")

    class Judge:
        """In the place of the previewer."""

        done = 0

        def __init__(self, samples: Samples, texts: Any, patcher: Any, vae: Any) -> None:
            self.patcher = patcher

        def draw(self) -> Image.Image:
            Judge.done += every
            if Judge.done in ladder:
                with clock.paused(), torch.inference_mode(False):
                    patcher = previews._already_loaded(self.patcher)
                    rungs.append(_rung(Judge.done, clock, world.score(patcher, others=True)))
            return Image.new("RGB", (8, 8))

    class Unseen(session.Live):
        """Draws no sheet: nobody asked for one."""

        def show(self, picture: Image.Image, step: int) -> None:
            pass

    samples = Samples(("",), "", 0, every, 1, 1.0, "euler", "normal", 64, 64)
    kept = session.prepare, session.Live
    session.prepare, session.Live = Judge, Unseen  # type: ignore[assignment,misc]
    try:
        with clock.running():
            pictures = load_folder(
                world.reference_files[0].parent,
                trigger="sks",
                class_noun="",
                caption_template="a picture of a {trigger}",
                resolution=64,
            )
            config = replace(config, steps=ladder[-1], sample_every=every)
            session.train_lora(world.model, world.clip, world.vae, pictures, config, samples=samples, prior=prior)
    finally:
        session.prepare, session.Live = kept  # type: ignore[misc]
    return rungs
