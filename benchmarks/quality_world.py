"""The small world in one process: the host's model, a held-out subject's pictures, and what a trained model is worth.

For time_to_quality.py; everything is drawn by the host's own sampler, from fixed seeds, all pictures in one batch.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import base_model
import numpy as np
import torch
from PIL import Image
from torch import Tensor

SEEDS = (50, 51)  # of each prompt
OTHERS = 8  # pretraining subjects asked of each trained model
SAMPLER = {"steps": 10, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}


@dataclass(frozen=True)
class Score:
    """What pictures of one model say.

    Attributes:
        similarity: DreamBooth's figure: mean cosine of pictures of the subject to its references.
        nearest: mean cosine to the nearest reference; near 1 says that they were copied.
        style: mean probability that the judge gives to the style that was asked.
        style_right: share whose style it names right.
        others: share of the pictures of other subjects, asked for by name, that it names right; -1: not asked.
    """

    similarity: float
    nearest: float
    style: float
    style_right: float
    others: float = -1.0

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Clock:
    """Seconds of this process, on the wall and on the CPU (all threads), of what is done while it runs."""

    def __init__(self) -> None:
        self._total = (0.0, 0.0)
        self._since: tuple[float, float] | None = None

    def read(self) -> tuple[float, float]:
        """(wall, CPU) so far."""
        if self._since is None:
            return self._total
        now = time.perf_counter(), time.process_time()
        wall, cpu = (total + end - start for total, end, start in zip(self._total, now, self._since, strict=True))
        return wall, cpu

    @contextmanager
    def running(self) -> Iterator[None]:
        self._since = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._total, self._since = self.read(), None


class World:
    """tiny-unet in the host, and one held-out subject."""

    def __init__(self, subject: str, seeds: tuple[int, ...] = SEEDS) -> None:
        base_model.open_host()
        base_model.open_pack()
        import comfy.sd
        import folder_paths

        from likeness.devtools.checkpoint import tiny_checkpoint
        from likeness.metrics.features import efficientnet_lite0
        from likeness.tinyworld.classifier import asked_subjects, load_judge
        from likeness.tinyworld.split import load_split

        self.folder = Path(tempfile.mkdtemp(prefix="time-to-quality-"))
        folder_paths.set_output_directory(str(self.folder / "output"))
        self.split = load_split()
        if subject not in self.split.held_out_subjects:
            raise ValueError(f"{subject!r} is no held-out subject; they are {', '.join(self.split.held_out_subjects)}")
        self.subject, self.seeds = subject, seeds
        self.judge, self.asked = load_judge(self.split), asked_subjects(self.split)
        self.features = efficientnet_lite0()
        loaded = comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint()), output_vae=True, output_clip=True)
        self.model, self.clip, self.vae = loaded[:3]

    @cached_property
    def reference_files(self) -> list[Path]:
        from likeness.tinyworld.truth import write_references

        return write_references(self.subject, self.folder / "references")

    @cached_property
    def references(self) -> Tensor:
        """(5, 3, 64, 64) in [0, 1]."""
        pictures = [np.array(Image.open(path).convert("RGB")) for path in self.reference_files]
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255

    @cached_property
    def wanted(self) -> list[tuple[str, int]]:
        """Prompts of the subject, each with the index of the style it asks for. No reference shows the first style."""
        from likeness.tinyworld.dataset import caption
        from likeness.tinyworld.truth import HELD_BACK_STYLE

        asked = [(HELD_BACK_STYLE, None, 0), ("openmoji", None, 2), ("fluent-emoji-flat", "blue", 0)]
        asked.append(("twemoji", "yellow", 1))
        styles = self.split.pretrain_styles
        return [(caption("sks", style, ground, form), styles.index(style)) for style, ground, form in asked]

    @cached_property
    def others(self) -> list[tuple[str, int]]:
        """Prompts of other subjects, each with the judge's index of it; others for each held-out subject."""
        from likeness.tinyworld.dataset import caption, words

        first = self.split.held_out_subjects.index(self.subject) * OTHERS
        styles = self.split.pretrain_styles
        picked = [((first + k) % len(self.asked), k % len(styles)) for k in range(OTHERS)]
        return [(caption(words(self.asked[i]), styles[j], None), i) for i, j in picked]

    def encoded(self, prompt: str) -> Any:
        """The host's CONDITIONING."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt))

    def draw(self, patcher: Any, prompts: list[str], seeds: tuple[int, ...]) -> Tensor:
        """A picture a prompt and seed, prompts first: (P·S, 3, 64, 64) in [0, 1]."""
        import comfy.sample

        texts = [self.encoded(prompt)[0] for prompt in prompts]
        together = torch.cat([text for text, _ in texts]).repeat_interleave(len(seeds), 0)
        pooled = torch.cat([more["pooled_output"] for _, more in texts]).repeat_interleave(len(seeds), 0)
        one = torch.zeros(1, 4, 8, 8)
        noise = torch.cat([comfy.sample.prepare_noise(one, seed) for seed in seeds]).repeat(len(prompts), 1, 1, 1)
        with torch.no_grad(), torch.random.fork_rng():
            latents = comfy.sample.sample(
                patcher,
                noise,
                positive=[[together, {"pooled_output": pooled}]],
                negative=self.encoded(""),
                latent_image=torch.zeros_like(noise),
                disable_pbar=True,
                seed=0,
                **SAMPLER,
            )
            pictures: Tensor = self.vae.decode(latents).permute(0, 3, 1, 2).clone()
        return pictures

    def score(self, patcher: Any, *, others: bool = False) -> Score:
        """What the model that `patcher` holds is worth."""
        from likeness.metrics.similarity import compare

        pictures = self.draw(patcher, [prompt for prompt, _ in self.wanted], self.seeds)
        found = compare(pictures, self.references, self.features)
        styles = torch.tensor([style for _, style in self.wanted]).repeat_interleave(len(self.seeds))
        with torch.no_grad():
            chances = self.judge(pictures)[1].softmax(1)
        right = float((chances.argmax(1) == styles).float().mean())
        style = float(chances.gather(1, styles[:, None]).mean())
        return Score(found.mean, found.nearest, style, right, self._kept(patcher) if others else -1.0)

    def _kept(self, patcher: Any) -> float:
        pictures = self.draw(patcher, [prompt for prompt, _ in self.others], (2000,))
        with torch.no_grad():
            named = self.judge(pictures)[0].argmax(1)
        return float((named == torch.tensor([subject for _, subject in self.others])).float().mean())
