"""All runs of one held-out subject in one process. Started by time_to_quality.py with its job as JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import base_model
import quality_runs
import torch
from quality_runs import Rung
from quality_world import World


def main() -> int:
    job = json.loads(sys.argv.pop(1))  # popped: the host reads the command line too
    folder, subject = Path(job["folder"]), job["subject"]
    torch.set_flush_denormal(True)  # before the first parallel region, so that the workers inherit it
    torch.set_num_threads(job["threads"])
    # Libraries are not what teaching a subject costs.
    base_model.open_host()
    import comfy_extras.nodes_train  # noqa: F401
    import matplotlib.backends.backend_agg  # noqa: F401
    import peft  # noqa: F401

    world = World(subject, tuple(job["seeds"]))

    def once(name: str, run: Callable[[], list[Rung]]) -> list[Rung]:
        path = folder / f"{subject}-{name}.json"
        if not path.is_file():
            path.with_suffix(".part").write_text(json.dumps(run(), indent=1))
            path.with_suffix(".part").replace(path)
        found: list[Rung] = json.loads(path.read_text())
        return found

    def untrained() -> list[Rung]:
        world.score(world.model)  # warms up
        return [{"steps": 0, "wall": 0.0, "cpu": 0.0, **world.score(world.model, others=True).as_dict()}]

    once("base", untrained)
    for rate in job["rates"]:
        once(f"built-in-{rate:g}", partial(quality_runs.built_in, world, rate, job["built_in_steps"]))
    once(job["ours"], lambda: quality_runs.ours(world, defaults(job["config"]), job["ladder"]))
    return 0


def defaults(changes: dict[str, object]) -> object:
    """What LikenessTrainLoRA trains with when nothing is touched, its widgets' values over the configuration's."""
    from likeness.nodes.options import UNTOUCHED
    from likeness.nodes.train import LikenessTrainLoRA
    from likeness.trainers.config import TrainingConfig

    shown = ("steps", "learning_rate", "rank", "alpha", "batch_size", "seed", "weighting")
    widgets = {one.id: one.default for one in LikenessTrainLoRA.define_schema().inputs if one.id in shown}
    return TrainingConfig.from_mapping({**UNTOUCHED, **widgets, **changes})


if __name__ == "__main__":
    sys.exit(main())
