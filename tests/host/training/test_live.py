"""The live preview of a training run."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any


def test_drawing_the_curves_leaves_nothing(comfy: SimpleNamespace) -> None:
    """Fails if a drawn figure waits for the collector, which in a server comes by once in dozens of them.

    A long run grew by a tenth of a gigabyte that way.
    """
    from matplotlib.figure import Figure

    from likeness.nodes.host.live import Live

    shown: list[Any] = []
    live = Live(SimpleNamespace(show=lambda *of: shown.append(of)), 100)  # type: ignore[arg-type]
    for step in range(1, 30):
        live.record({"step": step, "loss": 1 / step, "gradient_norm": 0.1, "learning_rate": 1e-4})
    live.draw(1)
    gc.collect()
    gc.disable()
    try:
        live.draw(29)
        left = [each for each in gc.get_objects() if type(each) is Figure]
    finally:
        gc.enable()
    assert len(shown) == 2 and not left


def test_the_last_step_is_what_stays(comfy: SimpleNamespace) -> None:
    """Fails if the node is left with curves from the middle of a run: drawing them may be due again only much later."""
    from likeness.nodes.host.live import Live

    shown: list[int] = []
    live = Live(SimpleNamespace(show=lambda picture, step, steps: shown.append(step)), 5)  # type: ignore[arg-type]
    for step in range(1, 6):
        if step == 2:
            live.draw(1)
        live.record({"step": step, "loss": 1 / step, "gradient_norm": 0.1, "learning_rate": 1e-4})
    assert shown == [1, 5]
    short: list[int] = []
    live = Live(SimpleNamespace(show=lambda picture, step, steps: short.append(step)), 5)  # type: ignore[arg-type]
    live.record({"step": 5, "loss": 1.0})
    assert short == []  # a run of a moment is not made longer
