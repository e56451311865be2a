"""FID, KID and Inception score with networks that the host keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.utils
from torch import Tensor

from ...metrics.fid import fid
from ...metrics.inception import InceptionFeatures, inception_file, load_inception
from ...metrics.inception_score import inception_score
from ...metrics.kid import kid
from ...metrics.rows import Row
from .scores import Labels, in_batches, metric_folders
from .scores import network as kept_network

_MEMORY = 2 * 1024**3  # 16 pictures of 299 × 299 through Inception


@dataclass(frozen=True)
class SetOptions:
    """What is computed. `resize`: one of ``metrics.inception.RESIZES``; the rest as in ``metrics.kid.kid``."""

    fid: bool
    kid: bool
    inception_score: bool
    resize: str
    kid_subset_size: int
    kid_subsets: int
    seed: int


def set_rows(
    pictures: Tensor, references: Tensor | None, options: SetOptions, model: Any | None, labels: Labels
) -> list[Row]:
    """Rows of (N, 3, H, W) against (M, 3, H', W'), one a metric.

    Args:
        model: a MetricModel whose features are used, or None for Inception's.

    Raises:
        ValueError: nothing is asked for, references or a network are missing, or the sets are too small.
    """
    if not (options.fid or options.kid or options.inception_score):
        raise ValueError("nothing is to be scored: switch on fid, kid or inception_score")
    if references is None and (options.fid or options.kid):
        raise ValueError("FID and KID compare with references: wire real pictures, or switch both off")
    compared = references if options.fid or options.kid else None
    network = None
    if model is None:
        path = _inception_path(options.inception_score)
        network = kept_network((path,), "Inception", lambda: load_inception(path))
        name = f"Inception 2015, {options.resize}"

        def embed(part: Tensor) -> Tensor:
            return InceptionFeatures(network.loaded(_MEMORY), options.resize)(part)  # type: ignore[arg-type]
    else:
        if options.inception_score:
            raise ValueError("the Inception score needs the Inception network: unwire model, or switch it off")
        name, embed = str(model.description), model.features
    bar = comfy.utils.ProgressBar(len(pictures) + (0 if compared is None else len(compared)))
    made = in_batches(pictures, embed, bar)
    rows: list[Row] = []
    if compared is not None:
        real = in_batches(compared, embed, bar)
        if options.fid:
            distance = fid(made, real, options.seed)
            rows.append(labels.row("fid", distance.distance, name, distance.warning))
        if options.kid:
            found = kid(made, real, options.kid_subsets, options.kid_subset_size, options.seed)
            spread = "" if found.spread is None else f", standard deviation {found.spread:.3g} over them"
            note = f"KID × 1000: {found.subsets} subset{'s' * (found.subsets > 1)} of {found.subset_size}{spread}"
            rows.append(labels.row("kid", found.distance, name, note))
    if network is not None and options.inception_score:
        inception = network.loaded(_MEMORY)
        device = next(inception.parameters()).device
        score = inception_score(inception.logits(made.to(device)).cpu(), seed=options.seed)
        rows.append(labels.row("inception_score", score.score, name, score.warning))
    return rows


def _inception_path(classes: bool) -> Any:
    places = metric_folders()
    for place in places:
        try:
            return inception_file(place)
        except ValueError:
            continue
    return inception_file(places[0])  # says what to do
