"""One contender in one process: load the base model, measure, train as it trains, report. Started by train_step.py.

`python contender.py '{"who": …, "targets": …, …}'` speaks JSON lines: `{}`-like readings out, `{"steps": n}` in.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import base_model
import memory
import torch
from gate import Gate
from models import Model, model_of
from stream import Stream


@dataclass(frozen=True)
class Job:
    """What the conductor wants of this process."""

    who: str
    model_name: str  # as models.model_of takes it
    targets: str  # attention | all
    checkpointing: bool
    steps: int  # all steps of the run, the gated ones and one more
    rank: int
    alpha: float
    lr: float
    seed: int
    threads: int
    folder: str  # weights.safetensors, stream.safetensors; exports go here too
    base: str = "fp32"  # what the model computes in: fp32 | bf16
    files: bool = True  # first values and exports are written, to be compared
    tiny: bool = False
    options: dict[str, Any] = field(default_factory=dict)  # more of TrainingConfig

    @property
    def model(self) -> Model:
        return model_of(self.model_name, self.tiny)

    @property
    def name(self) -> str:
        return f"{self.who}-{self.targets}-{'ckpt' if self.checkpointing else 'plain'}"

    def path(self, name: str) -> Path:
        return Path(self.folder) / name

    def init_file(self) -> Path:
        """The adapters' first values, as Likeness drew them, which the peer starts from too."""
        return self.path(f"init-{self.targets}-{'ckpt' if self.checkpointing else 'plain'}.safetensors")


Runner = Callable[[Job, Stream, Gate, Any], dict[str, Any]]


def main() -> int:
    out = quiet_stdout()
    torch.set_flush_denormal(True)  # before the first parallel region, so that the workers inherit it
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    base_model.open_host()
    stream = Stream.load(job.path("stream.safetensors"))
    gate = Gate(out)
    run, model = prepare(job)
    permitted = memory.reset_peak()
    before = memory.rss_mib()
    gate.say(ready=True, loaded_mib=before, peak_resettable=permitted)
    result = run(job, stream, gate, model)
    gate.say(done=True, extra_mib=memory.peak_mib() - before, **result)
    return 0


def quiet_stdout() -> TextIO:
    """Keep the real stdout for the protocol and send what libraries print to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def prepare(job: Job) -> tuple[Runner, Any]:
    """Import what the contender needs and load its model, before memory is counted.

    Whatever one of them imports, all do: libraries are not what a training step costs.
    """
    import comfy_extras.nodes_train  # noqa: F401
    import peft  # noqa: F401
    from diffusers import DDPMScheduler, SD3Transformer2DModel, UNet2DConditionModel  # noqa: F401

    weights = job.path("weights.safetensors")
    if job.who == "peft+diffusers":
        import peer_peft

        return peer_peft.run, base_model.load_in_diffusers(job.model, weights)
    if job.who == "built-in":
        import peer_builtin

        return peer_builtin.run, base_model.load_in_host(job.model, weights)
    if job.who == "floor":
        import floor

        return floor.run, base_model.load_in_host(job.model, weights)
    if job.who in ("Likeness", "Likeness adaptive"):
        base_model.open_pack()
        import ours

        return ours.run, base_model.load_in_host(job.model, weights)
    if job.who == "compare":
        import equality

        return equality.run, base_model.load_in_host(job.model, weights)
    raise ValueError(f"no contender {job.who!r}")


if __name__ == "__main__":
    sys.exit(main())
