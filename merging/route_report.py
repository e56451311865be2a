"""A route as a table, as JSON, as lines for Merge LoRAs, and as a picture."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from ..lora.canvas import canvas
from ..lora.markdown import markdown_table
from .route import Route, RoutedLora

_MOST_ROWS, _MOST_BARS, _MOST_TERMS = 60, 16, 5
KINDS = ("trigger", "words", "text")
_COLORS = ("#1f4e8c", "#6a9bd1", "#e0457b")


def route_table(route: Route) -> str:
    """A row a LoRA: weight, score, each kind of evidence with what was found, and why. The chosen first."""
    shown = route.loras[: max(_MOST_ROWS, len(route.chosen))]
    rows = [
        [
            one.card.name,
            f"{one.weight:g}" if one.weight == one.clip else f"{one.weight:g}, text encoders {one.clip:g}",
            f"{one.score:.2f}",
            _with(one.evidence.trigger, one.evidence.found),
            _with(one.evidence.words, one.evidence.terms),
            "–" if one.evidence.cosine is None else f"{one.evidence.text:.2f} (cosine {one.evidence.cosine:.3f})",
            one.why,
        ]
        for one in shown
    ]
    prompt = " ".join(route.prompt.split())
    text = f"# {len(route.chosen)} of {len(route.loras)} LoRAs\n\nPrompt: {prompt or '(empty)'}\n\n"
    text += markdown_table(["LoRA", "weight", "score", "trigger", "words of captions and name", "text", "why"], rows)
    if len(route.loras) > len(shown):
        text += f"\n\nand {len(route.loras) - len(shown)} more, which score less."
    kinds = [kind for kind in KINDS if kind != "text" or route.with_text]
    formula = "".join(f"(1 − {getattr(route.options, kind):g} · {kind})" for kind in kinds)
    return f"{text}\n\nscore = 1 − {formula}; the weights' total is {route.options.total:g}.\n"


def route_json(route: Route) -> str:
    """The same for programs, with every LoRA."""

    def plain(one: RoutedLora) -> dict[str, Any]:
        return {
            "file": one.card.file,
            "title": one.card.title,
            "architecture": one.card.architecture,
            "triggers": [", ".join(phrase.strip() for phrase in trigger) for trigger in one.card.triggers],
            "weight": one.weight,
            "clip_weight": one.clip,
            "chosen": one.chosen,
            "score": one.score,
            **{kind: getattr(one.evidence, kind) for kind in KINDS},
            "cosine": one.evidence.cosine,
            "found_triggers": one.evidence.found,
            "found_words": one.evidence.terms,
            "why": one.why,
        }

    found = {"prompt": route.prompt, "options": vars(route.options), "loras": [plain(one) for one in route.loras]}
    return json.dumps(found, ensure_ascii=False, allow_nan=False, indent=1)


def route_files(route: Route) -> str:
    """The chosen, a line each, file and weight, as ``selection.select_files`` reads them."""
    names = [(one.card.file.replace("\\", "/"), one.weight) for one in route.chosen if one.weight]
    return "\n".join(f"{'./' if name[0] in '#. ' else ''}{name} {weight:g}" for name, weight in names)


def route_plot(route: Route, width: int = 1000, height: int = 600) -> Tensor:
    """A bar a LoRA, the best above: its score, out of what each kind of evidence adds; the threshold; the weight.

    Returns:
        (1, height, width, 3) float32 in [0, 1], an IMAGE of the host.
    """
    figure, image = canvas(width, height)
    shown = route.loras[: max(_MOST_BARS, min(len(route.chosen), 2 * _MOST_BARS))][::-1]
    axes = figure.subplots()
    left = [0.0] * len(shown)
    for number, (kind, color) in enumerate(zip(KINDS, _COLORS, strict=True)):
        values = [one.parts[number] for one in shown]
        if kind != "text" or route.with_text:
            axes.barh(range(len(shown)), values, left=left, color=color, height=0.65, label=kind)
        left = [start + value for start, value in zip(left, values, strict=True)]
    for row, one in enumerate(shown):
        text = f"weight {one.weight:g}" if one.chosen else one.why
        axes.text(
            one.score + 0.01,
            row,
            text if len(text) < 50 else f"{text[:49]}…",
            va="center",
            fontsize=9,
            parse_math=False,
        )
    axes.axvline(route.options.threshold, color="#888888", linewidth=1, linestyle="--")
    names = [one.card.name if len(one.card.name) <= 32 else f"…{one.card.name[-31:]}" for one in shown]
    axes.set_yticks(range(len(shown)), names, fontsize=9, parse_math=False)
    for label, one in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_fontweight("bold" if one.chosen else "normal")
    axes.set_xlim(0, 1.25)
    axes.set_ylim(-0.6, max(len(shown), 6) - 0.4)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel("score")
    axes.legend(loc="lower right", fontsize=9, framealpha=0.8, edgecolor="none")
    axes.set_title(f"{len(route.chosen)} of {len(route.loras)} LoRAs", fontsize=12, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return image()


def _with(value: float, words: tuple[str, ...]) -> str:
    more = ", …" if len(words) > _MOST_TERMS else ""
    return f"{value:.2f} ({', '.join(words[:_MOST_TERMS])}{more})" if words else f"{value:.2f}"
