"""From readings to figures, targets and tables. Pure: no torch, no clock."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median


@dataclass
class Row:
    """One contender's readings.

    model: of models.MODELS. wall, cpu: seconds of each step, a list a round. extra_mib: peak resident memory above
    that after loading. losses: MSE of ε or velocity of each step, NaN where it cannot be known. names: trained layers.
    mean_rank: over layers and steps, where ranks adapt.
    """

    who: str
    targets: str
    checkpointing: bool
    wall: list[list[float]] = field(default_factory=list)
    cpu: list[list[float]] = field(default_factory=list)
    loaded_mib: float = 0.0
    extra_mib: float = 0.0
    peak_resettable: bool = True
    losses: list[float] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    stream_differs_by: float = 0.0
    model: str = "sd15"
    mean_rank: float = 0.0

    @property
    def slug(self) -> str:
        return f"{self.model}-{self.who}-{self.targets}-{'ckpt' if self.checkpointing else 'plain'}"

    def seconds(self, clock: str) -> float:
        """Median of all timed steps; clock is "cpu" or "wall"."""
        return median(second for one in self.rounds(clock) for second in one)

    def rounds(self, clock: str) -> list[list[float]]:
        return self.cpu if clock == "cpu" else self.wall


@dataclass(frozen=True)
class Finding:
    """A figure against its target."""

    name: str
    figure: float
    target: str
    ok: bool

    def line(self) -> str:
        return f"{self.name} {self.figure:.3g} {self.target} {'ok' if self.ok else 'short'}"


def ratio(slow: Row, fast: Row, clock: str = "cpu") -> float:
    """How many times the seconds of `fast` `slow` needs: the median over rounds, whose two readings are neighbours."""
    return median(fmean(a) / fmean(b) for a, b in zip(slow.rounds(clock), fast.rounds(clock), strict=True))


Equal = Mapping[str, Mapping[str, float]]
"""targets -> what equality.py found."""

_NETWORKS = {"sd15": 0.0, "sd15-batch4": 0.0}
"""How far the bare networks may differ. An SDXL or SD3 embeds sizes and times in another order of operations."""


def judge(rows: Sequence[Row], equal: Mapping[str, Equal]) -> list[Finding]:
    """All targets of the models that were run. Ratios are of CPU seconds and count as printed, with two decimals.

    Args:
        rows: of all models.
        equal: model -> targets -> what equality.py found.
    """
    return [finding for name in equal for finding in _judge(name, [r for r in rows if r.model == name], equal[name])]


def _judge(model: str, rows: Sequence[Row], equal: Equal) -> list[Finding]:
    row = {(r.who, r.targets, r.checkpointing): r for r in rows}
    modes = sorted({r.checkpointing for r in rows if r.who == "Likeness"})
    found: list[Finding] = []

    def at_least(name: str, figure: float, least: float) -> None:
        found.append(Finding(f"{model}:{name}", round(figure, 2), f">={least:g}", round(figure, 2) >= least))

    def at_most(name: str, figure: float, most: float, *, exact: bool = False) -> None:
        figure = figure if exact else round(figure, 2)
        found.append(Finding(f"{model}:{name}", figure, f"<={most:g}", figure <= most))

    for checkpointing in modes:
        mode = "checkpointing" if checkpointing else "plain"
        built_in, ours = row["built-in", "all", checkpointing], row["Likeness", "all", checkpointing]
        at_least(f"speed-against-built-in:all:{mode}", ratio(built_in, ours), 2.0)
        at_most(f"extra-memory-against-built-in:all:{mode}", ours.extra_mib / built_in.extra_mib, 0.8)
        for targets in ("all", "attention"):
            peer, ours = row["peft+diffusers", targets, checkpointing], row["Likeness", targets, checkpointing]
            at_least(f"speed-against-peft+diffusers:{targets}:{mode}", ratio(peer, ours), 1.05)
        ours = row["Likeness", "attention", checkpointing]
        at_most(f"extra-memory-against-built-in:attention:{mode}", ours.extra_mib / built_in.extra_mib, 0.33)
    at_most(
        "seconds-against-floor:attention:plain",
        ratio(row["Likeness", "attention", False], row["floor", "none", False]),
        1.08,
    )

    first = [r.losses[0] for r in rows if not math.isnan(r.losses[0])]
    at_most("step-1-loss-spread", (max(first) - min(first)) / min(first), 1e-5, exact=True)
    at_most("stream-difference", max(r.stream_differs_by for r in rows), 0.0, exact=True)
    pairs = [(row["Likeness", t, c], row["peft+diffusers", t, c]) for t in ("all", "attention") for c in modes]
    at_most("layers-not-shared", max(len(set(a.names) ^ set(b.names)) for a, b in pairs), 0, exact=True)
    for targets, pair in equal.items():
        at_most(f"networks-difference:{targets}", pair["networks"], _NETWORKS.get(model, 2e-5), exact=True)
        at_most(f"export-difference:{targets}", pair["exports"], 0.01, exact=True)
        at_most(f"export-keys-unmatched:{targets}", pair["unmatched"], 0, exact=True)
    return found


def render(
    rows: Sequence[Row],
    findings: Sequence[Finding],
    equal: Mapping[str, Equal],
    machine: Mapping[str, object],
    plan: str,
    *,
    markdown: bool,
) -> str:
    """The whole output."""
    floors = {r.model: r for r in rows if r.who == "floor"}
    head = [
        "model",
        "contender",
        "targets",
        "layers",
        "checkpointing",
        "CPU s/step",
        "wall s/step",
        "peak extra MiB",
        "CPU against Likeness",
        "CPU against floor",
    ]
    body = []
    for r in rows:
        wanted, floor = ("Likeness", r.targets, r.checkpointing, r.model), floors[r.model]
        ours = next((o for o in rows if (o.who, o.targets, o.checkpointing, o.model) == wanted), None)
        grouped = r is not floor and (r.targets, r.checkpointing) == ("attention", False)  # took turns with the floor
        body.append(
            [
                r.model,
                r.who,
                r.targets,
                str(len(r.names)) if r.names else ("0" if r is floor else "all + norms, biases"),
                "–" if r is floor else ("on" if r.checkpointing else "off"),
                f"{r.seconds('cpu'):.3f}",
                f"{r.seconds('wall'):.3f}",
                f"{r.extra_mib:.0f}",
                f"{ratio(r, ours):.2f}" if ours else "–",
                f"{ratio(r, floor):.2f}" if grouped else "–",
            ]
        )
    draw: Callable[[list[str], list[list[str]]], str] = _markdown if markdown else _columns
    lines = [
        f"{machine['machine']}, load {machine['load']} at the start; {machine['versions']}.",
        f"{plan}.",
        "",
        draw(head, body),
        "",
    ]
    for name, of_model in equal.items():
        for targets, pair in of_model.items():
            lines.append(
                f"Equality, {name}, {targets} targets: the two networks differ by {pair['networks']:.2g}; after the "
                f"run the LoRA moves the output by {pair['effect']:.2%} and the two exports differ by "
                f"{pair['exports']:.2%} of that."
            )
    if not all(r.peak_resettable for r in rows):
        lines.append("The kernel did not permit to reset VmHWM: peaks may hold what loading took.")
    lines.append("")
    return "\n".join([*lines, targets_met(findings, markdown)]) + "\n"


def targets_met(findings: Sequence[Finding], markdown: bool) -> str:
    """A line a target, or a table of them."""
    if not markdown:
        return "\n".join(finding.line() for finding in findings)
    body = [[f.name, f"{f.figure:.3g}", f.target, "ok" if f.ok else "short"] for f in findings]
    return _markdown(["target", "figure", "wanted", ""], body)


def _columns(head: list[str], body: list[list[str]]) -> str:
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *body]
    )


def _markdown(head: list[str], body: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *body])
