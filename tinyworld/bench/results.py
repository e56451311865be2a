"""tinyworld/RESULTS.md: tables, fidelity against editability, and where our order is not the published one."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...experiments import table
from ...experiments.statistics import Estimate, difference
from ...experiments.store import Record
from ...lora.atomic import write_whole
from . import runs
from .merges import LEARNED
from .methods import ADAPTED, OVERFITTED, PLAIN_LORA, STEPS

PAGE = Path(__file__).resolve().parent.parent / "RESULTS.md"
PLOT = PAGE.with_name("results.png")
WHOLE = ("fidelity", "truth", "prompt", "kept", "megabytes", "seconds")
SCENE = ("scene truth", "scene subject", "scene background", "scene prompt")
MERGED = ("truth", "subject similarity", "style similarity", "megabytes")
COMPARED = ("truth", "prompt", "kept", "scene subject", "scene prompt")
DIGITS = {"scene background": 1, "megabytes": 2, "seconds": 0}
CLAIMS = (
    (f"dora, {STEPS} steps", PLAIN_LORA, "ahead of LoRA at equal rank, arXiv 2402.09353", True),
    (
        ADAPTED,
        f"LoRA, rank 64, {STEPS} steps",
        "as good as the best fixed rank in less memory, arXiv 2603.21884; here a fixed rank's alpha is its rank, so "
        "that 64 learns faster too: docs/adaptive_rank.md has one alpha for all",
        False,
    ),
)
"""Method, the other one, what is published, and whether that is to be ahead or not to be behind."""
PUBLISHED_PRIORS = "λ .25 best of {.25, .5, .75, 1} by DINO (.588), 1.0 worst (.462)"


def write_page(
    rows: Sequence[table.Row],
    records: Sequence[Record],
    merged: Sequence[table.Row],
    subjects: Sequence[str],
    form: str,
    command: str,
) -> None:
    """Write the page and its plot; `merged` are the rows of merges, which are asked for other pictures."""
    parts = [
        "# Methods on subjects that the model has never seen",
        f"Made by `{command}`, the {form} form: {len(subjects)} held-out subjects ({', '.join(subjects)}), "
        f"{machine()}. Every run is a graph on a real ComfyUI; `bench/protocol.py` says what is asked and how it is "
        "scored.",
        _MEANING,
        "## All that is asked",
        _table(rows, WHOLE),
        "## In scenes that no reference shows",
        _SCENES,
        _table(rows, SCENE),
        *against(records),
        *(["## Subject and style in one LoRA", _MERGES, _table(merged, MERGED)] if merged else []),
        "## Fidelity against editability",
        f"![Subject truth over prompts followed]({PLOT.name})",
        "## Against the published",
        published(rows, records, merged),
    ]
    write_whole(PLOT, [tradeoff(rows)])
    write_whole(PAGE, ["\n\n".join(parts).encode() + b"\n"])


_MEANING = (
    "*fidelity*: mean cosine to the references (DreamBooth's figure, which copies of references raise); *truth*: mean "
    "cosine to the TRUE picture of that subject in the style that was asked, on white, features of EfficientNet-Lite0 "
    "(metrics/README.md: a true picture in another style scores .5 to .7, another subject .3); *prompt*: share of all "
    "pictures in the style, and on the background, that was asked; *kept*: share of other subjects still drawn right "
    "by name; *megabytes* of the file; *seconds* of the whole run, training and pictures, longer where others used the "
    "machine. Mean [95% interval over subjects]."
)
_SCENES = (
    "Four scenes: a style and a coloured background. *scene truth*: mean cosine to the true picture there; *scene "
    "subject*: of the subject's region alone, cut out by the pack's own segmenter, to the true subject; *scene "
    "background*: PSNR, in dB, of the rest of the picture against the colour that was asked; *scene prompt*: share in "
    "the right style on the right colour."
)

_PAIRED = (
    "Mean difference of the same subjects [95% interval over subjects]; bold where the interval leaves out 0. No "
    "correction for the number of rows: of twenty figures behind which nothing is, one is bold by chance."
)
_MERGES = (
    "A subject's LoRA and a held-out style's; *truth*: to the TRUE picture of that subject in that style. Joint "
    "training, and why the published order does not show: `benchmarks/README.md`, compare_merges.py."
)


def machine() -> str:
    """Processor, cores and torch, in words."""
    import torch

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        name = next(
            (line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), name
        )
    return f"{os.cpu_count()} cores of {name}, torch {torch.__version__}"


def _table(rows: Sequence[table.Row], columns: Sequence[str]) -> str:
    having = [row for row in rows if any(column in row.figures for column in columns)]
    lines = _head(columns)
    for row in having:
        cells = [_shown(row.figures.get(column), DIGITS.get(column, 3)) for column in columns]
        lines.append(f"| {row.values['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(figure: Estimate | None, digits: int) -> str:
    if figure is None:
        return "–"
    if figure.units < 2 or (digits < 3 and figure.error == 0):
        return f"{figure.mean:.{digits}f}"
    return f"{figure.mean:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def published(rows: Sequence[table.Row], records: Sequence[Record], merged: Sequence[table.Row] = ()) -> str:
    """Sentences on each order that a paper gives, and whether it shows here."""
    lines = []
    means = {str(row.values["method"]): row.figures for row in rows}
    priors = {name: of["fidelity"].mean for name, of in means.items() if "prior λ" in name and "fidelity" in of}
    if len(priors) > 1:
        order = sorted(priors, key=lambda name: -priors[name])
        shows = "0.25" in order[0] and "λ 1," in order[-1]
        lines.append(
            f"- **Prior weight** (published: {PUBLISHED_PRIORS}). Here, by fidelity: "
            + ", ".join(f"{_short(name)} {priors[name]:.3f}" for name in order)
            + (f"; without, λ 0, {means[OVERFITTED]['fidelity'].mean:.3f}" if OVERFITTED in means else "")
            + (". The same order at its ends." if shows else ". **The published order does not show.**")
        )
    lines += _ahead(records)
    lines += _merges({str(row.values["method"]): row.figures["truth"].mean for row in merged if "truth" in row.figures})
    lines += _alchemy(means, records)
    steps = [
        (name, of["truth"].mean, of["kept"].mean) for name, of in means.items() if _is_curve(name) and "kept" in of
    ]
    if len(steps) > 1:
        told = ", ".join(f"{name.split(', ')[1]} {truth:.3f} and {kept:.2f}" for name, truth, kept in steps)
        lines.append(f"- **Steps** buy truth with what the model knew (truth and kept): {told}.")
    return "\n".join(lines) or "Nothing of this run is in the papers."


def _ahead(records: Sequence[Record]) -> list[str]:
    """Methods that their papers place ahead of, or level with, another: by truth, of the same subjects."""
    lines = []
    for name, other, claim, ahead in CLAIMS:
        paired = _paired(records, name, other, "truth")
        if paired is None:
            continue
        shows = paired.low > 0 if ahead else paired.high >= 0
        verdict = "It shows." if shows else "**It does not show.**"
        lines.append(
            f"- **{name}** (published: {claim}). Here truth less that of {other}: {_signed(paired)}. {verdict}"
        )
    return lines


def _merges(truth: Mapping[str, float]) -> list[str]:
    """Whether learnt merges are ahead of the plain ones, as both papers have it."""
    learnt = [name for name in LEARNED if name in truth]
    if not learnt or "direct" not in truth:
        return []
    told = ", ".join(f"{name} {truth[name]:.3f}" for name in ("direct", *learnt))
    shows = all(truth[name] > truth["direct"] for name in learnt)
    verdict = "The same order." if shows else "**The published order does not show**; why: `benchmarks/README.md`."
    return [
        f"- **Merges** (published: {' and '.join(learnt)} ahead of direct merging). Here, by truth: {told}. {verdict}"
    ]


def _alchemy(means: Mapping[str, Mapping[str, Estimate]], records: Sequence[Record]) -> list[str]:
    direct = next((name for name in means if name == OVERFITTED), None)
    piped = [name for name in means if name.startswith("Image-Alchemy")]
    lines = []
    for name in piped if direct else []:
        parts = []
        for column, unit in (("scene background", " dB"), ("scene subject", ""), ("scene truth", "")):
            paired = difference(runs.by_subject(records, name, column), runs.by_subject(records, str(direct), column))
            parts.append(f"{column} {paired.mean:+.3g}{unit} [{paired.low:+.3g}, {paired.high:+.3g}]")
        lines.append(f"- **{name}** less the same LoRA asked directly, by subject: {'; '.join(parts)}.")
    return lines


def against(records: Sequence[Record]) -> list[str]:
    """The section on differences by subject from the plain LoRA; nothing where that was not run."""
    methods = list(dict.fromkeys(str(record.values["method"]) for record in records))
    if PLAIN_LORA not in methods:
        return []
    lines = _head(COMPARED)
    for name in methods:
        cells = []
        for column in COMPARED if name != PLAIN_LORA else ():
            paired = _paired(records, name, PLAIN_LORA, column)
            if paired is None:
                cells.append("–")
            else:
                cells.append(_signed(paired) if paired.low <= 0 <= paired.high else f"**{_signed(paired)}**")
        if set(cells) - {"–"}:
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return [f"## Less {PLAIN_LORA}, by subject", _PAIRED, "\n".join(lines)]


def _paired(records: Sequence[Record], name: str, other: str, column: str) -> Estimate | None:
    """One method less another, subject by subject; None below two subjects that both have."""
    own, theirs = (runs.by_subject(records, each, column) for each in (name, other))
    return difference(own, theirs) if len(own.keys() & theirs.keys()) > 1 else None


def _signed(paired: Estimate) -> str:
    return f"{paired.mean:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"


def _head(columns: Sequence[str]) -> list[str]:
    """The first two lines of a table of methods."""
    return [f"| method | {' | '.join(columns)} |", f"|{' --- |' * (len(columns) + 1)}"]


def _is_curve(name: str) -> bool:
    return name.startswith("LoRA, ") and name.count(",") == 1


def _short(name: str) -> str:
    """A point's label: "400 steps", "λ 0.5", "rank 4", "dora"."""
    if "prior" in name:
        return name.split("prior ")[1].split(",")[0]
    return name.removeprefix("LoRA, ").removesuffix(f", {STEPS} steps")


def tradeoff(rows: Sequence[table.Row]) -> bytes:
    """Truth (up) over prompts followed, and over what is kept (right): the curve of steps, that of λ, all others.

    λ is in the order of its figures, from 0, which is the plain LoRA of as many steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    for index, (x, label) in enumerate((("prompt", "prompts followed"), ("kept", "other subjects kept"))):
        axes = figure.add_subplot(1, 2, index + 1)
        groups: dict[str, list[tuple[float, float, str]]] = {"steps": [], "prior λ": [], "other": []}
        for row in rows:
            if x in row.figures and "truth" in row.figures:
                name = str(row.values["method"])
                point = (row.figures[x].mean, row.figures["truth"].mean, name)
                groups["steps" if _is_curve(name) else "prior λ" if "prior" in name else "other"].append(point)
        if groups["prior λ"]:
            groups["prior λ"][:0] = [(*point[:2], "λ 0") for point in groups["steps"] if point[2] == OVERFITTED]
        for number, (group, points) in enumerate(groups.items()):
            if not points:
                continue
            line = "" if group == "other" else "-"
            axes.plot([p[0] for p in points], [p[1] for p in points], f"o{line}", color=f"C{number}", label=group)
            for place, (px, py, name) in enumerate(points):
                left = group == "prior λ" and place % 2 == 0  # λ's points lie close together
                at: dict[str, Any] = {"xytext": (-6, -2) if left else (6, -2), "ha": "right" if left else "left"}
                axes.annotate(_short(name), (px, py), textcoords="offset points", fontsize=7, **at)
        axes.set_xlabel(f"{label} →")
        axes.set_ylabel("truth →")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        axes.margins(0.12)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
