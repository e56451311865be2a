"""Rows of gpu_step.py: which there are, and from their readings the table and the targets. Pure: no torch, no clock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from report import Finding, _columns, _markdown

PUBLISHED = """\
Published by others, on other hardware, as references and not as targets:
- SDXL 1024², SimpleTuner, H100, bf16: 0.606 s/step and 13.0 GiB without checkpointing, 1.080 s and 6.5 GiB with.
- SDXL, diffusers' scripts: under 16 GB with checkpointing and 8-bit Adam.
- SDXL 1024², ComfyUI's pull request 12189: about 4 GB.
- Flux, sd-scripts: 24 GB at batch 2; 12 GB with 16 blocks swapped and 8-bit AdamW."""


@dataclass(frozen=True)
class Case:
    """A contender as it is to run.

    mode: what is done for memory or speed. options: more of TrainingConfig. stored: the base's weights, bf16 or fp8.
    first: measured with --quick too. asked: only where --rows names it.
    """

    model: str
    who: str
    targets: str
    mode: str = "plain"
    options: dict[str, Any] = field(default_factory=dict)
    stored: str = "bf16"
    first: bool = False
    asked: bool = False

    @property
    def checkpointing(self) -> bool:
        return self.mode.startswith("checkpointing")

    @property
    def name(self) -> str:
        return f"{self.model} {self.who} {self.targets} {self.mode}"


SWAP, HALF, SIXTEEN = "checkpointing, all blocks swapped", "checkpointing, half swapped", "checkpointing, 16 swapped"
_OURS, _NODE, _PEFT = "Likeness", "built-in", "peft+diffusers"

CASES = [
    Case("sdxl-1024", _OURS, "attention", first=True),
    Case("sdxl-1024", _NODE, "all", first=True),
    Case("sdxl-1024", _PEFT, "attention", first=True),
    Case("sdxl-1024", "floor", "none", first=True),
    Case("sdxl-1024", _OURS, "all", first=True),
    Case("sdxl-1024", _OURS, "attention", "checkpointing", first=True),
    Case("flux", _OURS, "attention", "checkpointing", first=True),
    Case("sdxl-1024", _OURS, "attention", SWAP, {"offload_blocks": 1.0}, first=True),
    Case("flux", _PEFT, "attention", "checkpointing", first=True),
    Case("flux", _OURS, "attention", SWAP, {"offload_blocks": 1.0}, first=True),
    Case("sdxl-1024", _NODE, "all", "checkpointing"),
    Case("sdxl-1024", _PEFT, "attention", "checkpointing"),
    Case("flux", _NODE, "all", "checkpointing"),
    Case("flux", _OURS, "attention", SIXTEEN, {"offload_blocks": 16 / 57}),
    Case("flux", _OURS, "attention"),
    Case("sdxl-1024", _PEFT, "all"),
    Case("sdxl-1024", _OURS, "all", "checkpointing"),
    Case("flux", _OURS, "attention", "checkpointing, fp8", stored="fp8"),
    Case("sdxl-1024", _OURS, "attention", "checkpointing, fp8", stored="fp8"),
    Case("sdxl-1024", _OURS, "attention", "fp8", stored="fp8"),
    Case("sdxl-1024", _OURS, "attention", HALF, {"offload_blocks": 0.5}),
    Case("sdxl-1024", _OURS, "attention", "torch.compile", {"compile": True}, asked=True),
]
"""In the order in which they are measured: the most wanted first, for what no time is left for is left out."""


@dataclass
class Row:
    """What was measured of a case.

    seconds: of each timed step. weights: GiB of the base on the device once made. peak, reserved: the most allocated,
    and the most that the allocator held, in the steps after the first. loading: the most allocated before that, making
    the model and the first step included. estimate: GiB that Likeness foretold, 0 = it did not. failed: why there is
    nothing, or not all.
    """

    case: Case
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    layers: int = 0
    weights: float = 0.0
    peak: float = 0.0
    reserved: float = 0.0
    loading: float = 0.0
    estimate: float = 0.0
    notes: list[str] = field(default_factory=list)
    failed: str = ""

    @property
    def step(self) -> float:
        """Seconds a step, the median; NaN where none was timed."""
        return median(self.seconds) if self.seconds else math.nan

    @property
    def extra(self) -> float:
        """GiB beside the weights."""
        return self.peak - self.weights

    def line(self) -> str:
        """While others are still to come."""
        if not self.seconds:
            return f"{self.case.name}: {self.failed}"
        losses = f"loss {self.losses[0]:.4f} to {self.losses[-1]:.4f}" if self.losses else "losses unknown"
        foretold = f" (foretold {self.estimate:.2f})" if self.estimate else ""
        return (
            f"{self.case.name}: {self.step:.4f} s/step of {len(self.seconds)}, {min(self.seconds):.4f} to "
            f"{max(self.seconds):.4f}; peak {self.peak:.2f} GiB{foretold}, reserved {self.reserved:.2f}, weights "
            f"{self.weights:.2f}, until the first step {self.loading:.2f}; {losses}"
            + "".join(f"; {more}" for more in [*self.notes, self.failed] if more)
        )

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        losses = [loss if math.isfinite(loss) else None for loss in self.losses]
        step = self.step if self.seconds else None
        return {**asdict(self), "losses": losses, "name": self.case.name, "seconds_a_step": step}


def judge(rows: Sequence[Row]) -> list[Finding]:
    """Each target whose rows were measured. Ratios count as printed, with two decimals."""
    return [found for model in dict.fromkeys(row.case.model for row in rows) for found in _judge(model, rows)]


def _judge(model: str, rows: Sequence[Row]) -> list[Finding]:
    measured = [row for row in rows if row.case.model == model and row.seconds]
    there = {(row.case.who, row.case.targets, row.case.mode): row for row in measured}
    found: list[Finding] = []

    def ratio(
        name: str, what: str, ours: tuple[str, str, str], other: tuple[str, str, str], least: bool, x: float
    ) -> None:
        if ours not in there or other not in there:
            return
        one, two = getattr(there[ours], what), getattr(there[other], what)
        figure = round(two / one if least else one / two, 2)
        sign, ok = (">=", figure >= x) if least else ("<=", figure <= x)
        found.append(Finding(f"{model}:{name}", figure, f"{sign}{x:g}", ok))

    for mode in ("plain", "checkpointing"):
        node = _NODE, "all", mode
        for targets, most in (("all", 0.8), ("attention", 0.33)):
            ours = _OURS, targets, mode
            if targets == "all":
                ratio(f"speed-against-built-in:all:{mode}", "step", ours, node, True, 2.0)
            ratio(f"extra-memory-against-built-in:{targets}:{mode}", "extra", ours, node, False, most)
            peer = _PEFT, targets, mode
            ratio(f"speed-against-peft+diffusers:{targets}:{mode}", "step", ours, peer, True, 1.05)
    plain, swapped = (_OURS, "attention", "plain"), (_OURS, "attention", SWAP)
    ratio("seconds-against-floor:attention:plain", "step", plain, ("floor", "none", "plain"), False, 1.08)
    ratio("peak-with-swap:attention", "peak", swapped, plain, False, 0.35)
    ratio("seconds-with-swap:attention", "step", swapped, plain, False, 1.6)
    losses = [loss for row in measured for loss in row.losses]
    if losses:
        count = sum(not math.isfinite(loss) for loss in losses)
        found.append(Finding(f"{model}:losses-not-finite", count, "<=0", count == 0))
    still = there.get((_OURS, "attention", "checkpointing"))
    for mode in (SWAP, HALF, SIXTEEN):
        moved = there.get((_OURS, "attention", mode))
        if still and moved and still.losses and moved.losses:  # the same numbers go in; a GPU adds in another order
            spread = max(abs(a / b - 1) for a, b in zip(moved.losses, still.losses, strict=True))
            which = mode.split(", ")[1].replace(" ", "-")
            found.append(Finding(f"{model}:losses-moved:{which}", spread, "<=0.02", spread <= 0.02))
    first = [row.losses[0] for row in measured if row.losses and row.case.stored == "bf16"]
    if len(first) > 1:
        spread = (max(first) - min(first)) / min(first)
        found.append(Finding(f"{model}:step-1-loss-spread", spread, "<=0.02", spread <= 0.02))
    return found


def table(rows: Sequence[Row], markdown: bool) -> str:
    """All rows, those that failed too."""
    head = ["model", "contender", "targets", "mode", "layers", "s/step", "peak GiB", "reserved GiB", "beside weights"]
    body = []
    for row in rows:
        figures = [f"{row.step:.3f}", *(f"{x:.2f}" for x in (row.peak, row.reserved, row.extra))]
        layers = str(row.layers or ("all + norms, biases" if row.case.who == _NODE else "–"))
        case = row.case
        which = [case.model, case.who, case.targets, case.mode]
        body.append([*which, layers, *(figures if row.seconds else [row.failed.split("\n")[0][:60], "–", "–", "–"])])
    return (_markdown if markdown else _columns)(head, body)
