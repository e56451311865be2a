"""Rows of pictures against prompts, references and targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import comfy.utils
import torch
from torch import Tensor

from ...metrics.clip_score import Pairing, class_prompt, clip_score_of, prompt_cosines
from ...metrics.lpips import Lpips, load_lpips
from ...metrics.pairs import (
    PSNR_MODEL,
    SSIM_MODEL,
    Distance,
    check_pairs,
    lpips_per_pair,
    psnr_per_pair,
    ssim_per_pair,
)
from ...metrics.region import subject_regions
from ...metrics.rows import Row
from ...metrics.similarity import cosine_similarities
from .managed import Managed, kept
from .metric_model import MetricModel
from .prompt_scores import prompt_scorer
from .reward_model import RewardModel
from .scores import OFF, Labels, in_batches, metric_folders, network_files

MEAN, NEAREST = "mean of all references", "nearest reference"
_MEMORY = 1024**3
NO_SUBJECT = "the mask is empty: no subject in this picture"


def prompts_of(text: str, token: str, noun: str) -> list[str]:
    """A prompt a line, the class noun in the token's place; empty lines are left out."""
    return [class_prompt(line.strip(), token, noun) for line in text.splitlines() if line.strip()]


def prompt_rows(
    pictures: Tensor, prompts: Sequence[str], model: MetricModel, pairing: Pairing, scaled: bool, labels: Labels
) -> list[Row]:
    """A row a picture (N, 3, H, W).

    Args:
        scaled: CLIPScore's 2.5 · max(cos, 0).

    Raises:
        ValueError: prompts that do not fit the pictures, or a network without words.
    """
    if scaled and pairing == "all pairs":
        raise ValueError("2.5 · max(cos, 0) is defined for matched pairs: choose the cosine, or matched")
    if isinstance(model, RewardModel) and (scaled or pairing == "all pairs"):
        raise ValueError(
            "ImageReward has one score, of each picture with its own prompt: set pairing to matched and score to cosine"
        )
    if pairing == "all pairs":
        texts = list(dict.fromkeys(prompts))
        encoded, cut = model.cut_text_features(texts)
        each = encoded[[texts.index(text) for text in prompts]]
        cosines = prompt_cosines(model.features(pictures), each, pairing)
        note = next((note for note in cut if note), "")
        rows = labels.per_picture("clip_t_all_pairs", cosines.tolist(), model.description, "")
        return [replace(row, note=note) for row in rows]
    if len(prompts) not in (1, len(pictures)):
        raise ValueError(
            f"there are {len(pictures)} pictures and {len(prompts)} prompts: write one for all, or one a picture, each "
            "on a line of its own"
        )
    scorer = prompt_scorer(model, prompts)
    own = list(prompts) * (len(pictures) if len(prompts) == 1 else 1)
    values = scorer.scores(pictures, own)
    metric, values = ("clip_score", clip_score_of(values)) if scaled else (scorer.metric, values)
    rows = labels.per_picture(metric, values.tolist(), model.description, "")
    return [replace(row, prompt=text, note=scorer.notes[text]) for row, text in zip(rows, own, strict=True)]


@dataclass(frozen=True)
class Masks:
    """Where the subject is. `pictures`, `references`: (B or 1, H, W), or None; `margin` as in ``metrics.region``."""

    pictures: Tensor | None
    references: Tensor | None
    margin: float


def subject_rows(
    pictures: Tensor, references: Tensor, model: MetricModel, compared: str, masks: Masks, labels: Labels
) -> list[Row]:
    """A row a picture (N, 3, H, W) against references (M, 3, H', W').

    Raises:
        ValueError: masks that do not fit, or no reference has its subject.
    """
    shown = _regions(pictures, masks.pictures, masks.margin)
    known = [one for one in _regions(references, masks.references, masks.margin) if one is not None]
    if not known:
        raise ValueError("every reference's mask is empty: there is no subject to compare with")
    parts = [one for one in shown if one is not None]
    bar = comfy.utils.ProgressBar(len(parts) + len(known))
    values: list[float | None] = [None] * len(shown)
    if parts:
        found = cosine_similarities(model.features(parts, bar), model.features(known, bar))
        each = iter((found.per_picture if compared == MEAN else found.nearest_per_picture).tolist())
        values = [None if one is None else next(each) for one in shown]
    metric = model.subject_metric if compared == MEAN else "nearest_similarity"
    masked = {(True, True): "both", (True, False): "pictures", (False, True): "references"}
    which = masked.get((masks.pictures is not None, masks.references is not None))
    about = model.description + (f", subject region of {which}, margin {masks.margin:g}" if which else "")
    return labels.per_picture(metric, values, about, NO_SUBJECT)


def _regions(pictures: Tensor, masks: Tensor | None, margin: float) -> list[Tensor | None]:
    return list(pictures) if masks is None else subject_regions(pictures, masks, margin)


def lpips_files() -> list[str]:
    """Files in models/metrics that may be LPIPS's backbone."""
    names = network_files(".pth", ".safetensors")
    return [name for name in names if any(part in name.lower() for part in ("alex", "vgg16", "lpips"))]


def pair_rows(
    pictures: Tensor, targets: Tensor, ssim: bool, psnr: bool, lpips: str, batch: int, labels: Labels
) -> list[Row]:
    """Rows of pairs (N, 3, H, W), a metric after the other. `lpips`: a name of :func:`lpips_files`, or off.

    Raises:
        ValueError: nothing is asked for, a file is missing, or pictures do not pair.
    """
    if not (ssim or psnr or lpips != OFF):
        raise ValueError("nothing is to be scored: switch on ssim or psnr, or choose a file for lpips")
    if len(targets) == 1:
        targets = targets.expand(len(pictures), -1, -1, -1)
    asked: list[tuple[bool, str, Distance, str]] = [
        (ssim, "ssim", ssim_per_pair, SSIM_MODEL),
        (psnr, "psnr", psnr_per_pair, PSNR_MODEL),
    ]
    functions = [(name, function, about) for wanted, name, function, about in asked if wanted]
    if lpips != OFF:
        network = _lpips(lpips)

        def distance(part: Tensor, target: Tensor) -> Tensor:
            return lpips_per_pair(part, target, network.loaded(_MEMORY))

        functions.append(("lpips", distance, network.loaded(_MEMORY).description))
    check_pairs(pictures, targets)
    bar = comfy.utils.ProgressBar(len(functions) * len(pictures))
    both = torch.cat([pictures, targets], dim=1)
    rows: list[Row] = []
    for name, function, about in functions:
        values = in_batches(both, lambda part, of=function: of(part[:, :3], part[:, 3:]), bar, batch).tolist()
        rows += labels.per_picture(name, values, about, "")
    return [replace(row, note="equal to its target") if row.value == math.inf else row for row in rows]


def _lpips(name: str) -> Managed:
    path = next(
        (place / name for place in metric_folders() if name in lpips_files() and (place / name).is_file()), None
    )
    if path is None:
        raise ValueError(f"LPIPS's file {name!r} is not in {metric_folders()[0]}")

    def make() -> Lpips:
        with torch.inference_mode(False):
            return load_lpips(path)

    return kept((path,), "LPIPS", make)


def mean_of(rows: Sequence[Row]) -> float:
    """Mean of the finite figures; NaN where there is none."""
    known = [row.value for row in rows if row.value is not None and math.isfinite(row.value)]
    return sum(known) / len(known) if known else math.nan
