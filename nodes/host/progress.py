"""What the user sees while training: the node's progress bar, text and preview."""

from __future__ import annotations

import logging
import math
import sys
import time
from typing import Any

import comfy.utils
from PIL import Image

from .interrupt import Interrupt

log = logging.getLogger(__name__)

SMALL = 384  # pixels: smaller previews are enlarged
SHORTEST = 0.1
"""Seconds between two messages; a tiny model makes more steps than a page can show."""


class Reporter:
    """Progress of one node."""

    def __init__(self, steps: int, node_id: str | None, interrupt: Interrupt) -> None:
        self.bar = comfy.utils.ProgressBar(steps, node_id=node_id)
        self.node_id = node_id
        self.interrupt = interrupt
        self.preview: Image.Image | None = None
        self._last = 0.0

    def step(self, step: int, steps: int, loss: float, seconds_left: float) -> None:
        """Callback of the training loop."""
        now = time.monotonic()
        if now - self._last < SHORTEST and step < steps:
            return
        self._last = now
        self._show(step, steps)
        self.text(f"step {step} of {steps}, loss {loss:.4f}, {clock(seconds_left)} left")

    def text(self, message: str) -> None:
        """Show a line on the node, where the host has a way to."""
        server = _server()
        send = getattr(server, "send_progress_text", None)
        if send is not None and self.node_id is not None:
            send(message, self.node_id, server.client_id)

    def show(self, picture: Image.Image, step: int, steps: int) -> None:
        """Make the picture the node's live preview."""
        times = max(1, SMALL // max(picture.size))  # of a tiny model: whole pixels, or nobody sees them
        self.preview = picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
        self._show(step, steps)

    def _show(self, step: int, steps: int) -> None:
        preview = None if self.preview is None else ("JPEG", self.preview, max(self.preview.size))
        self.preview = None  # the page keeps the last one
        with self.interrupt.held():  # the host looks for a cancel here, too
            self.bar.update_absolute(step, steps, preview)


def clock(seconds: float) -> str:
    """``1:05``, or ``2:03:09`` from an hour on; ``?`` when it is not known."""
    if not math.isfinite(seconds) or seconds < 0:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _server() -> Any:
    """The running PromptServer, or None outside of one."""
    # No import: without a server it fails anew at each step, a tenth of a small model's.
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)
