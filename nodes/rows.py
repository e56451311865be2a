"""Inputs that several nodes have."""

from __future__ import annotations

import comfy.samplers
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


def sampling_inputs(steps: int = 20) -> list[io.Input]:
    """steps, cfg, sampler_name and scheduler of pictures that a node draws, as in the host's KSampler."""
    sampler = comfy.samplers.KSampler
    return [
        io.Int.Input("steps", default=steps, min=1, max=1000, tooltip="Sampling steps of a picture."),
        io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="Classifier-free guidance."),
        io.Combo.Input(
            "sampler_name",
            options=sampler.SAMPLERS,
            default="euler",
            tooltip="The host's sampler, as in KSampler.",
        ),
        io.Combo.Input(
            "scheduler",
            options=sampler.SCHEDULERS,
            default="normal",
            tooltip="The host's noise schedule, as in KSampler.",
        ),
    ]


def size_inputs() -> list[io.Input]:
    """width and height of what is imagined or drawn where there are no pictures."""
    return [
        io.Int.Input(name, optional=True, default=512, min=16, max=16384, step=8, tooltip="Without pictures: pixels.")
        for name in ("width", "height")
    ]
