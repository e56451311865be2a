"""Which layers get an adapter: presets by the names that models use, or a regular expression."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import nn

from ..lora.roles import ATTENTION, FEED_FORWARD
from .config import TEXT_ENCODERS

PREFIX = "diffusion_model."
"""A layer's canonical name is this and its path in the Denoiser's module; text encoders have prefixes of their own."""

_ENCODER = re.compile(r"(?:^|\.)(?:input_blocks|time_embed|label_emb)\.")
"""A UNet's way down and the embedders of time and size. Transformers have none of these names."""

PRESETS: dict[str, Callable[[str], bool]] = {
    "attention": lambda name: bool(ATTENTION.search(name)),
    "attention+feed-forward": lambda name: bool(ATTENTION.search(name) or FEED_FORWARD.search(name)),
    "all": lambda name: True,
    # What stands before the first layer that learns needs no gradient, and keeps nothing for it.
    "decoder": lambda name: not _ENCODER.search(name),
}


def adaptable_layers(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Every layer a LoRA can be put beside, by canonical name, in the modules' order: Linear and ungrouped Conv2d.

    Args:
        modules: prefix of the canonical names -> module, such as ``{"diffusion_model.": unet}``.
    """
    return {
        prefix + name: layer
        for prefix, module in modules.items()
        for name, layer in module.named_modules()
        if name and (isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1))
    }


def matched_layers(modules: Mapping[str, nn.Module], targets: str, pattern: str = "") -> tuple[str, ...]:
    """Canonical names of the layers that a target names, in the modules' order.

    Args:
        modules: prefix of the canonical names -> module.
        targets: a key of :data:`PRESETS`, or "custom".
        pattern: for "custom", a regular expression searched in the canonical names.

    Raises:
        ValueError: unknown target, bad expression, or no layer matched (with names that are there).
    """
    if targets == "custom":
        try:
            wanted = re.compile(pattern)
        except re.error as why:
            raise ValueError(f"The target pattern {pattern!r} is no regular expression: {why}.") from why
        chosen: Callable[[str], bool] = lambda name: bool(wanted.search(name))  # noqa: E731
    elif targets in PRESETS:
        chosen = PRESETS[targets]
    else:
        raise ValueError(f"Unknown target {targets!r}; choose one of {', '.join(PRESETS)}, custom.")
    names = adaptable_layers(modules)
    if matched := tuple(name for name in names if chosen(name)):
        return matched
    what = f"The target pattern {pattern!r}" if targets == "custom" else f"The target {targets!r}"
    some = ", ".join(list(names)[:: max(1, len(names) // 4)][:5]) or "none at all"
    raise ValueError(f"{what} matches no layer of this model. Layers that could be matched are, for example: {some}.")


def text_encoder_layers(encoders: Mapping[str, nn.Module], which: str, pattern: str = "") -> tuple[str, ...]:
    """Canonical names of the text encoders' layers that a choice names: attention and feed-forward, as sd-scripts has.

    Args:
        encoders: prefix of the canonical names -> module, in the host's order (SDXL: CLIP-L, CLIP-G; Flux: CLIP-L, T5).
        which: one of ``trainers.config.TEXT_ENCODERS``.
        pattern: for "custom", a regular expression searched in the canonical names of any layer.

    Raises:
        ValueError: unknown choice, bad expression, no second encoder, or no layer matched.
    """
    if which == "custom":
        return matched_layers(encoders, which, pattern)
    chosen = list(encoders.items())
    if which in ("first", "second"):
        chosen = chosen[:1] if which == "first" else chosen[1:2]
    elif which != "all":
        raise ValueError(f"Unknown text encoders {which!r}; choose one of {', '.join(TEXT_ENCODERS)}.")
    if not chosen:
        there = ", ".join(encoders) or "none"
        raise ValueError(f"There is no {which} text encoder; there is {there.replace('.', '')}. Choose 'all'.")
    return matched_layers(dict(chosen), "attention+feed-forward")
