"""Cancel: the host raises wherever it happens to look; we finish the step, then stop in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management

InterruptProcessingException = comfy.model_management.InterruptProcessingException


class Interrupt:
    """Remembers a cancel.

    The host clears its flag when it raises, and it raises in any layer's forward pass and in any progress message.
    Training must stop between steps instead, with a checkpoint, so what was raised is kept here until the loop asks.
    """

    def __init__(self) -> None:
        self.seen = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """What the host raises inside is remembered, and ends only the block."""
        try:
            yield
        except InterruptProcessingException:
            self.seen = True

    def cancelled(self) -> bool:
        """Has the user cancelled?"""
        with self.held():
            comfy.model_management.throw_exception_if_processing_interrupted()
        return self.seen
