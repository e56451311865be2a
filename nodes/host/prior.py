"""Class pictures: what the model is to keep, encoded from a dataset or drawn once by the model itself."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sample
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from ...lora.atomic import write_whole
from ...lora.files import write_safetensors
from ...trainers.checkpoints import write_text
from ...trainers.dataset import Example, PictureSet
from ...trainers.randomness import derived_seed
from ..types import Prior
from .fingerprint import model_fingerprint
from .folders import runs_folder
from .latents import zero_latents
from .previews import grid
from .text import Texts
from .weights import ordinary_tensors

log = logging.getLogger(__name__)

FOLDER = "prior"
TOGETHER = 4
"""Pictures of one prompt that are drawn in one batch."""


@dataclass(frozen=True)
class Wanted:
    """A picture to be drawn: its prompt, (height, width) in pixels, and the seed of its noise, if that matters."""

    prompt: str
    size: tuple[int, int]
    seed: int | None = None


def wanted_pictures(prior: Prior, pictures: PictureSet) -> list[Wanted]:
    """Prompts in turn, sizes in the proportion of the training pictures', so that they fit into their batches."""
    nouns = list(dict.fromkeys(member.class_noun for member in pictures.members()))
    prompts = list(
        dict.fromkeys(" ".join(prompt.replace("{class}", noun).split()) for prompt in prior.prompts for noun in nouns)
    )
    sizes = [picture.target_size for picture in pictures.pictures]
    return [
        Wanted(prompts[number % len(prompts)], sizes[number * len(sizes) // prior.pictures])
        for number in range(prior.pictures)
    ]


def drawn_pictures(
    patcher: comfy.model_patcher.ModelPatcher,
    encoded: Texts,
    vae: Any,
    prior: Prior,
    pictures: PictureSet,
    tell: Callable[[str], None],
    show: Callable[[Image.Image], None],
) -> tuple[Example, ...]:
    """Class pictures of the model's own, as examples. Drawn once and kept below the output folder.

    Args:
        patcher: the untrained model.
        encoded: of its text encoders.
        tell: shows a line to the user.
        show: shows the sheet of the pictures.

    Raises:
        InterruptProcessingException: the user cancelled; nothing is kept.
    """
    wanted = wanted_pictures(prior, pictures)
    texts = {prompt: encoded.conditioning(prompt) for prompt in dict.fromkeys(each.prompt for each in wanted)}
    negative = encoded.conditioning("")
    how = (prior.seed, prior.steps, prior.cfg, prior.sampler_name, prior.scheduler)
    sizes = [[each.prompt, *each.size] for each in wanted]
    name = model_fingerprint(patcher, how, sizes, [text[0][0] for text in texts.values()], negative[0][0])
    folder = runs_folder() / FOLDER / name
    latents = _kept(folder / "latents.safetensors", len(wanted))
    if latents is None:
        latents = draw_latents(patcher, vae, prior, wanted, texts, negative, tell)
        _keep(folder, latents, wanted, prior, vae, patcher)
    sheet = folder / "pictures.png"
    if sheet.is_file():
        with Image.open(sheet) as file:
            show(file.convert("RGB"))
    empty_sizes = {"crop_w": 0, "crop_h": 0}
    examples = []
    for each, one in zip(wanted, latents, strict=True):
        height, width = each.size
        sizes_of = {"width": width, "height": height, "target_width": width, "target_height": height, **empty_sizes}
        cond, empty = (encoded.cond(text, one.unsqueeze(0), sizes_of) for text in (each.prompt, ""))
        with ordinary_tensors():
            examples.append(Example(one.clone(), None, cond, None, empty=empty))
    return tuple(examples)


def draw_latents(
    patcher: comfy.model_patcher.ModelPatcher,
    vae: Any,
    prior: Prior,
    wanted: Sequence[Wanted],
    texts: dict[str, list[list[Any]]],
    negative: list[list[Any]],
    tell: Callable[[str], None],
    together: int = TOGETHER,
) -> list[Tensor]:
    """(C, …) float32 latents in the model's space, by the host's sampler.

    Args:
        patcher: the model that draws.
        prior: seed and sampler; nothing else of it is heeded.
        wanted: the pictures. Those with a seed begin with the same noise whatever is drawn beside them, as KSampler's.
        texts: their prompts' CONDITIONINGs.
        negative: that of what is not wanted.
        tell: shows a line to the user.
        together: pictures of one prompt in a batch.
    """
    groups: dict[Wanted, list[int]] = {}
    for number, each in enumerate(wanted):
        groups.setdefault(replace(each, seed=None), []).append(number)
    latents: list[Tensor | None] = [None] * len(wanted)
    done = 0
    with torch.no_grad(), torch.random.fork_rng():  # the host seeds torch's global generator
        for each, numbers in groups.items():
            for start in range(0, len(numbers), together):
                comfy.model_management.throw_exception_if_processing_interrupted()
                some = numbers[start : start + together]
                tell(f"drawing pictures, {done} of {len(wanted)}")
                empty = zero_latents(vae, patcher, each.size[1], each.size[0]).repeat_interleave(len(some), 0)
                seeds = [seed for number in some if (seed := wanted[number].seed) is not None]
                seed = seeds[0] if seeds else derived_seed(prior.seed, "class pictures", some[0])
                one_each = [comfy.sample.prepare_noise(empty[:1], each_seed) for each_seed in seeds]
                drawn = comfy.sample.sample(
                    patcher,
                    torch.cat(one_each) if one_each else comfy.sample.prepare_noise(empty, seed),
                    prior.steps,
                    prior.cfg,
                    prior.sampler_name,
                    prior.scheduler,
                    texts[each.prompt],
                    negative,
                    empty,
                    disable_pbar=True,
                    seed=seed,
                )
                scaled = patcher.model.process_latent_in(drawn).float().cpu()
                for number, one in zip(some, scaled, strict=True):
                    latents[number] = one.clone()
                done += len(some)
    return [one for one in latents if one is not None]


def _keep(
    folder: Path,
    latents: Sequence[Tensor],
    wanted: Sequence[Wanted],
    prior: Prior,
    vae: Any,
    patcher: comfy.model_patcher.ModelPatcher,
) -> None:
    """Write the latents, a picture to look at, and what they were made of; the latents last: they are what counts."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "prompts": list(dict.fromkeys(each.prompt for each in wanted)),
        "pictures": len(wanted),
        "seed": prior.seed,
        "steps": prior.steps,
        "cfg": prior.cfg,
        "sampler_name": prior.sampler_name,
        "scheduler": prior.scheduler,
    }
    write_text(folder / "prior.json", json.dumps(about, indent=2) + "\n")
    size = latents[0].shape
    alike = [one for one in latents if one.shape == size]
    pixels = vae.decode(patcher.model.process_latent_out(torch.stack(alike)))
    data = io.BytesIO()
    grid(pixels.reshape(-1, *pixels.shape[-3:])).save(data, "PNG")
    write_whole(folder / "pictures.png", [data.getvalue()])
    tensors = {f"{number:05}": one.contiguous() for number, one in enumerate(latents)}
    write_safetensors(folder / "latents.safetensors", tensors, {"format": "pt"})


def _kept(path: Path, count: int) -> list[Tensor] | None:
    """What an earlier run drew, or None."""
    if not path.is_file():
        return None
    try:
        tensors = load_file(path)
    except Exception as why:  # safetensors has an error class of its own
        log.warning("Likeness: %s cannot be read (%s); class pictures are drawn anew.", path, why)
        return None
    return [tensors[name] for name in sorted(tensors)] if len(tensors) == count else None
