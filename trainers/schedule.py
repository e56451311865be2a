"""Learning rate schedules, as pure functions of the step, so that a resumed run needs no state of them."""

from __future__ import annotations

import math


def rate_factor(step: int, schedule: str, warmup_steps: int, steps: int) -> float:
    """What the peak learning rate is times at one step, in [0, 1].

    As transformers' and diffusers' ``get_scheduler``: linear from 0 over the warm-up, so that the very first step of
    a warm-up has a rate of 0; then constant, half a cosine to 0, or linear to 0 at ``steps``.

    Args:
        step: from 0.
        schedule: "constant", "cosine" or "linear".
        warmup_steps: W.
        steps: in all, the warm-up included.

    Raises:
        ValueError: unknown schedule.
    """
    if step < warmup_steps:
        return step / max(1, warmup_steps)
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
    if schedule == "linear":
        return max(0.0, 1 - progress)
    raise ValueError(f"Unknown schedule {schedule!r}; expected 'constant', 'cosine' or 'linear'.")
