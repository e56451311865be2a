"""Words -> their pictures by the host's sampler -> which word the model has the weakest prior for."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import comfy.model_patcher
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...metrics.pairs import WINDOW, ssim_per_pair
from ...trainers.token_prior import Choice, WordPrior, choose, prior_json, prior_table, word_prior
from .contact_sheet import contact_sheet
from .drawn import Asked, How, draw_pictures
from .interrupt import Interrupt, InterruptProcessingException
from .previews import grid
from .progress import Reporter

log = logging.getLogger(__name__)

PLACE = "{word}"
THUMBNAIL = 192
PREVIEWED = 6
"""Words in the live preview: the last ones."""


@dataclass(frozen=True)
class Measured:
    """What the node gives.

    Attributes:
        word: the chosen one.
        sheet: (1, H, W, 3), a row a word, weakest prior first.
        table, json: the figures.
    """

    word: str
    sheet: Tensor
    table: str
    json: str


def words_of(text: str) -> list[str]:
    """One a line, or between commas; each once.

    Raises:
        ValueError: none.
    """
    words = list(dict.fromkeys(word for part in re.split(r"[\n,]", text) if (word := " ".join(part.split()))))
    if not words:
        raise ValueError("There is no word to try: write candidates, one a line, or wire Find Rare Tokens (Likeness).")
    return words


def measure_prior(
    patcher: comfy.model_patcher.ModelPatcher,
    clip: Any,
    vae: Any,
    words: Sequence[str],
    template: str,
    seeds: Sequence[int],
    how: How,
    metric_model: Any | None,
    node_id: str | None,
) -> Measured:
    """Draw, compare, choose.

    Pictures lie in ``output/likeness/pictures/``; what is there is not drawn again.

    Args:
        template: the prompt, with ``{word}`` in the word's place.
        seeds: the same for every word.
        metric_model: with ``features(pictures (B, 3, H, W)) -> (B, D)``, or None.

    Raises:
        ValueError: a template without ``{word}``, fewer than two seeds, pictures too small for SSIM.
        InterruptProcessingException: the user cancelled; what was drawn is kept.
    """
    if PLACE not in template:
        raise ValueError(f"The template {template!r} has no place for the word; write {PLACE} into it.")
    if min(how.width, how.height) < WINDOW:
        raise ValueError(f"Pictures of {how.width}×{how.height} are too small for SSIM; at least {WINDOW} each way.")
    if len(seeds) < 2:
        raise ValueError(f"{len(seeds)} picture says nothing of variety; expected at least 2 of each word.")
    interrupt = Interrupt()
    total = len(words) * len(seeds)
    reporter = Reporter(total, node_id, interrupt)
    features = None if metric_model is None else metric_model.features
    small: dict[str, Tensor] = {}
    priors: dict[str, WordPrior] = {}
    for number, word in enumerate(words):  # one at a time, so that memory holds the pictures of one
        batches: list[Tensor] = []

        def drawn(
            count: int, batch: Tensor, word: str = word, number: int = number, batches: list[Tensor] = batches
        ) -> None:
            batches.append(batch)
            small[word] = torch.cat([_thumbnails(each) for each in batches])
            if count == len(seeds):
                priors[word] = word_prior(word, torch.cat(batches).movedim(-1, 1), ssim_per_pair, features)
            shown = dict([*small.items()][-PREVIEWED:])
            reporter.show(grid(_sheet(shown, priors), 1), number * len(seeds) + count, total)
            if interrupt.cancelled():
                raise InterruptProcessingException()

        reporter.text(f"{word}: word {number + 1} of {len(words)}")
        asked = Asked(template.replace(PLACE, word), tuple(seeds))
        draw_pictures(patcher, clip, vae, [asked], how, _quiet, drawn)
    choice = choose([priors[word] for word in words])
    if choice.warning:
        log.warning("Likeness: Token Prior: %s", choice.warning)
    ranked = {each.word: small[each.word] for each in choice.ranked}
    about = (
        f"Prompt: {template!r}. {len(seeds)} pictures of each word, seeds {seeds[0]} to {seeds[-1]}, "
        f"{how.line(patcher.load_device)}."
    )
    settings = {"template": template, "seeds": list(seeds), **asdict(how)}
    return Measured(
        choice.word, _sheet(ranked, priors, choice), prior_table(choice, about), prior_json(choice, settings)
    )


def _sheet(pictures: Mapping[str, Tensor], priors: Mapping[str, WordPrior], choice: Choice | None = None) -> Tensor:
    """A row a word."""
    return contact_sheet([(_label(word, priors.get(word), choice), some) for word, some in pictures.items()])


def _quiet(line: str) -> None:
    """What draw_pictures says of one word's pictures; the node counts all."""


def _thumbnails(pictures: Tensor) -> Tensor:
    """(B, H, W, 3), no larger than the sheet shows them."""
    scale = THUMBNAIL / max(pictures.shape[1:3])
    if scale >= 1:
        return pictures
    size = [max(1, round(side * scale)) for side in pictures.shape[1:3]]
    return interpolate(pictures.movedim(-1, 1), size=size, mode="area").movedim(1, -1)


def _label(word: str, prior: WordPrior | None, choice: Choice | None) -> str:
    if prior is None:
        return word
    variance = "" if prior.variance is None else f", variance {prior.variance:.3f}"
    chosen = " (chosen)" if choice is not None and choice.word == word else ""
    return f"{word}{chosen}: SSIM {prior.ssim:.4f}{variance}"
