"""The training node's live preview: the run's curves, under the sample pictures where there are some."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping

import numpy as np
from PIL import Image

from ...trainers.curve import training_curves
from .progress import Reporter

log = logging.getLogger(__name__)

FIRST = 3.0
"""Seconds until the curves are drawn for the first time."""

SHARE = 0.02
"""Of the time may go into drawing them, at most."""

SHORTEST = 10.0
"""Seconds between two drawings."""


class Live:
    """Hears each line of the log, and draws now and then."""

    def __init__(self, reporter: Reporter, steps: int) -> None:
        self.reporter = reporter
        self.steps = steps
        self.records: list[Mapping[str, float]] = []
        self.samples: Image.Image | None = None
        self._next = time.monotonic() + FIRST
        self._shown = False

    def record(self, record: Mapping[str, float]) -> None:
        """A line of the log."""
        self.records.append(record)
        step = int(record["step"])
        if time.monotonic() >= self._next or (self._shown and step == self.steps):  # the page keeps the last one
            self.draw(step)

    def show(self, samples: Image.Image, step: int) -> None:
        """Sample pictures of a step."""
        self.samples = samples
        self.draw(step)

    def draw(self, step: int) -> None:
        """Make the preview anew. Whatever hinders it must not end the training."""
        began, self._shown = time.monotonic(), True
        try:
            curves = training_curves([record["loss"] for record in self.records], self.records, 896, 560)
            picture = Image.fromarray((curves[0].numpy() * 255).astype(np.uint8))
            self.reporter.show(picture if self.samples is None else _below(self.samples, picture), step, self.steps)
        except Exception:
            log.warning("Likeness: the curves could not be drawn.", exc_info=True)
        # A figure is a knot of references, which only the collector unties; among a server's half million objects it
        # would not come by for dozens of figures, megabytes each.
        gc.collect()
        now = time.monotonic()
        self._next = now + max(SHORTEST, (now - began) / SHARE)


def _below(samples: Image.Image, curves: Image.Image) -> Image.Image:
    """The curves under the samples, which are made as wide."""
    scale = curves.width / samples.width
    how = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS  # a tiny model's pixels stay pixels
    wide = samples.convert("RGB").resize((curves.width, max(1, round(samples.height * scale))), how)
    both = Image.new("RGB", (curves.width, wide.height + curves.height), "white")
    both.paste(wide, (0, 0))
    both.paste(curves, (0, wide.height))
    return both
