"""Inputs that several nodes have."""

from __future__ import annotations

from comfy_api.latest import io

WEIGHTED = ("auto", "none", "debiased")
"""Weightings that need no numbers; Loss and Noise Options has the others."""


def seed_input(tooltip: str) -> io.Input:
    """seed, of 64 bits; it stays as it is after a run, so that a run can be repeated."""
    return io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=False, tooltip=tooltip)


def alpha_input(tooltip: str) -> io.Input:
    """alpha, by which ΔW = alpha/rank · up · down."""
    return io.Float.Input("alpha", default=16.0, min=0.001, max=100_000.0, step=1.0, round=0.001, tooltip=tooltip)


def weighting_input(tooltip: str) -> io.Input:
    """weighting. Optional: prompts from before it was an input do not name it, and mean "none"."""
    return io.Combo.Input("weighting", optional=True, options=list(WEIGHTED), default="auto", tooltip=tooltip)


def size_inputs() -> list[io.Input]:
    """width and height of what is imagined or drawn where there are no pictures."""
    return [
        io.Int.Input(name, optional=True, default=512, min=16, max=16384, step=8, tooltip="Without pictures: pixels.")
        for name in ("width", "height")
    ]
