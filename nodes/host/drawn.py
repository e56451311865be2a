"""Pictures that a protocol asks for, drawn by the host's sampler and kept, so that a cancelled run goes on later."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_patcher
import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...lora.atomic import write_whole
from ...metrics.costs import Drawn
from ..types import GENERATED, Prior
from .fingerprint import model_fingerprint
from .folders import runs_folder, safe_name
from .prior import Wanted, draw_latents
from .text import CachedText

FOLDER = "pictures"
_SECONDS, _WARM_UP, _BATCH = "likeness.seconds", "likeness.warm_up", "likeness.batch"


@dataclass(frozen=True)
class How:
    """How pictures are drawn; names as in the host's KSampler.

    Attributes:
        negative: the negative prompt.
        steps, cfg, sampler_name, scheduler: of the sampler.
        width, height: in pixels.
        together: pictures of one prompt in a batch.
    """

    negative: str
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    width: int
    height: int
    together: int

    def line(self, device: object) -> str:
        """What a time of drawing depends on."""
        how = f"{self.width}×{self.height}, {self.steps} steps, {self.sampler_name}, cfg {self.cfg:g}"
        return f"{how}, {self.together} at once, on {device}"


@dataclass(frozen=True)
class Asked:
    """One prompt as the model gets it, and a seed for each of its pictures."""

    prompt: str
    seeds: tuple[int, ...]


def draw_pictures(
    patcher: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    asked: Sequence[Asked],
    how: How,
    tell: Callable[[str], None],
    drawn: Callable[[int, Tensor], None],
) -> tuple[Tensor, list[Drawn]]:
    """Draw what is not there yet.

    Each batch is written below ``output/likeness/pictures/`` as soon as it is drawn, under a name made of the model's
    weights, the prompt's encoding, the seed and the settings; what is there is read. Pictures are rounded to 8 bits, as
    files are, so that both score alike.

    Args:
        tell: shows a line to the user.
        drawn: called after each batch with how many pictures there are by now, and the batch.

    Returns:
        (pictures (N, H, W, 3) in [0, 1] in the order of ``asked``, how long each batch took when it was drawn).

    Raises:
        InterruptProcessingException: the user cancelled; what was drawn is kept.
        ValueError: a picture holds NaN.
    """
    texts = CachedText(clip, patcher)
    negative = texts.conditioning(how.negative)
    name = model_fingerprint(patcher, repr(how), negative[0][0], dict(vae.first_stage_model.state_dict()))
    folder = runs_folder() / FOLDER / name
    found: list[Tensor] = []
    batches: list[Drawn] = []
    warm = False
    for one in asked:
        text = texts.conditioning(one.prompt)
        stem = f"{safe_name(one.prompt[:40]) or 'picture'}_{_digest(text)}"
        for start in range(0, len(one.seeds), how.together):
            seeds = one.seeds[start : start + how.together]
            # A sampler that adds noise draws it for the batch as a whole, so that the batch is what is kept.
            batch = hashlib.blake2b(repr(seeds).encode(), digest_size=4).hexdigest()
            paths = [folder / f"{stem}_{seed}_{batch}.png" for seed in seeds]
            kept = _kept(paths, batch)
            if kept is None:
                tell(f"drawing pictures, {len(found)} of {sum(len(each.seeds) for each in asked)}")
                begun = time.perf_counter()
                pixels = _draw(patcher, vae, one.prompt, seeds, text, negative, how)
                took = Drawn(len(seeds), time.perf_counter() - begun, warm_up=not warm)
                warm = True
                for path, picture in zip(paths, pixels, strict=True):
                    about = {"likeness.prompt": one.prompt, _BATCH: batch, _SECONDS: repr(took.seconds)}
                    _write(path, picture, {**about, _WARM_UP: str(int(took.warm_up))})
                kept = pixels, took
            pictures = kept[0].float() / 255
            found.extend(pictures)
            batches.append(kept[1])
            drawn(len(found), pictures)
    return torch.stack(found), batches


def _draw(
    patcher: comfy.model_patcher.ModelPatcher,
    vae: Any,
    prompt: str,
    seeds: Sequence[int],
    text: list[list[Any]],
    negative: list[list[Any]],
    how: How,
) -> Tensor:
    """(B, H, W, 3) uint8."""
    sampler = Prior(
        GENERATED, 1.0, (prompt,), len(seeds), seeds[0], how.steps, how.cfg, how.sampler_name, how.scheduler, None
    )
    wanted = [Wanted(prompt, (how.height, how.width), seed) for seed in seeds]
    latents = draw_latents(patcher, vae, sampler, wanted, {prompt: text}, negative, lambda _: None, how.together)
    pixels: Tensor = vae.decode(patcher.model.process_latent_out(torch.stack(latents)))
    pixels = pixels.reshape(-1, *pixels.shape[-3:])[: len(seeds), ..., :3]  # a video VAE gives frames
    if not pixels.isfinite().all():
        raise ValueError(
            f"A picture of {prompt!r} holds NaN or infinity, and would be scored as black. A VAE in 16 bits can do "
            "that: try --fp32-vae, or another VAE."
        )
    return (pixels.clamp(0, 1) * 255).round().byte().cpu()


def _digest(text: list[list[Any]]) -> str:
    """Of what the text encoders made of a prompt: they may carry a LoRA, too."""
    digest = hashlib.blake2b(digest_size=6)
    for tokens, more in text:
        for part in (tokens, more.get("pooled_output")):
            if isinstance(part, Tensor):
                digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, picture: Tensor, about: dict[str, str]) -> None:
    info = PngInfo()
    for name, value in about.items():
        info.add_text(name, value)
    data = io.BytesIO()
    Image.fromarray(picture.numpy()).save(data, "PNG", pnginfo=info, compress_level=1)
    write_whole(path, [data.getvalue()])


def _kept(paths: Sequence[Path], batch: str) -> tuple[Tensor, Drawn] | None:
    """A batch that an earlier run drew, whole, or None."""
    pictures, about = [], {}
    for path in paths:
        if not path.is_file():
            return None
        try:
            with Image.open(path) as file:
                about = dict(file.info)
                pictures.append(torch.from_numpy(np.array(file.convert("RGB"))))
        except (OSError, ValueError):
            return None
        if about.get(_BATCH) != batch:
            return None
    took = Drawn(len(paths), float(about.get(_SECONDS, "nan")), about.get(_WARM_UP) == "1")
    return torch.stack(pictures), took
