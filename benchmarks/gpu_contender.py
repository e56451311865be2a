"""One contender of gpu_step.py in a process of its own: import, wait, make the model on the device, train, report.

`python gpu_contender.py '{"job": …, "device": …, …}'` speaks JSON lines: it says that it has imported, waits for a
line, and says what it measured. So the next ones' imports pass while one has the device to itself.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import math
import sys
import time
import traceback
from typing import Any, TextIO

import base_model
import contender
import memory
import torch
from contender import Job
from torch import Tensor

GIB = float(1 << 30)


class Enough(BaseException):
    """The time for this contender is over, and some steps were timed."""


class Meter:
    """The device's clock and memory; on a CPU, the process's."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.cuda = device, device.type == "cuda"

    def synchronise(self) -> None:
        """Wait until all that was asked of the device is done."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def reset(self) -> None:
        """Begin a new high-water mark."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            memory.reset_peak()

    def settle(self) -> None:
        """Wait, and give back what is free: what making a model left over is not what training holds."""
        self.synchronise()
        if self.cuda:
            torch.cuda.empty_cache()

    def now(self) -> float:
        """GiB allocated."""
        return torch.cuda.memory_allocated(self.device) / GIB if self.cuda else memory.rss_mib() / 1024

    def peak(self) -> tuple[float, float]:
        """The most GiB that were allocated, and that the allocator held."""
        if not self.cuda:
            return memory.peak_mib() / 1024, memory.peak_mib() / 1024
        most = torch.cuda.max_memory_allocated(self.device), torch.cuda.max_memory_reserved(self.device)
        return most[0] / GIB, most[1] / GIB


class Watch:
    """A gate (gate.py) that nobody has to open: it waits for the device at the start of each step, and reads it."""

    def __init__(self, meter: Meter, warmup: int, seconds: float) -> None:
        self.meter, self.warmup = meter, warmup
        self.until = time.perf_counter() + seconds
        self.wall: list[float] = []
        self.loading = (0.0, 0.0)
        self.peak = (0.0, 0.0)
        self._started: float | None = None

    def step(self) -> None:
        """Call once a step, at the same place in it."""
        self.meter.synchronise()
        now = time.perf_counter()
        if self._started is not None:
            self.wall.append(now - self._started)
        if len(self.wall) == 1:  # all is set up, optimizer included; weights that were to go have gone
            self.loading = self.meter.peak()
            self.meter.reset()
        elif self.wall:
            self.peak = self.meter.peak()
        if now > self.until and len(self.timed) >= 3:
            raise Enough
        self._started = time.perf_counter()

    @property
    def timed(self) -> list[float]:
        """Seconds of the steps after those to warm up."""
        return self.wall[self.warmup :]


def main() -> int:
    out = contender.quiet_stdout()
    logging.basicConfig(level=logging.INFO)
    told = json.loads(sys.argv[1])
    job = Job(**told["job"])
    torch.set_flush_denormal(True)
    torch.set_num_threads(job.threads)
    base_model.open_host(told["device"])
    base_model.open_pack()
    import comfy.model_management
    import comfy_extras.nodes_train  # noqa: F401
    import ours
    import peft  # noqa: F401
    from diffusers import DDPMScheduler  # noqa: F401

    base_model.peer_class(job.model)  # imports it: libraries are not what is measured
    device = comfy.model_management.get_torch_device()
    stream = ours.draw_stream(job.model, job.steps, job.seed)
    say(out, imported=True, machine=machine(device))
    if not sys.stdin.readline():
        return 1
    try:
        say(out, **measured(job, told, stream, device))
    except torch.OutOfMemoryError as why:
        say(out, failed=f"out of memory: {str(why)[:300]}")
    except Exception as why:
        traceback.print_exc()
        say(out, failed=f"{type(why).__name__}: {' '.join(str(why).split())[:300]}")
    return 0


def measured(job: Job, told: dict[str, Any], stream: Any, device: torch.device) -> dict[str, Any]:
    """Make the model, train it, and say what it took."""
    import random_model

    meter, before = Meter(device), 0.0
    ballast = leave(told["leave"], device)
    meter.reset()
    if device.type == "cpu" or ballast is not None:
        before = meter.now()
    dtype = torch.float8_e4m3fn if told["stored"] == "fp8" else torch.bfloat16
    began = time.perf_counter()
    if job.who == "peft+diffusers":
        model = random_model.random_in_diffusers(job.model, device, dtype)
    else:
        compute = None if dtype == torch.bfloat16 else torch.bfloat16
        where = torch.device("cpu") if told["leave"] else device  # whence the host loads it, as it loads a file's
        model = random_model.random_in_host(job.model, device, dtype, compute, where)
    meter.settle()
    weights, made = meter.now() - before, time.perf_counter() - began
    watch = Watch(meter, told["warmup"], told["seconds"])
    result: dict[str, Any] = {}
    try:
        result = runner(job.who)(
            job, stream if job.who in ("Likeness", "built-in") else stream.to(device), watch, model
        )
    except Enough:
        result = {"losses": [], "failed": f"stopped after {told['seconds']:.0f} s"}
    # JSON knows no NaN.
    losses = [loss if math.isfinite(loss) else None for loss in result.pop("losses")]
    return {
        "seconds": watch.timed,
        "weights": weights,
        "peak": watch.peak[0] - before,
        "reserved": watch.peak[1] - before,
        "loading": max(watch.loading[0], watch.peak[0]) - before,
        "losses": losses,
        "made_in": made,
        **result,
    }


def leave(gib: float, device: torch.device) -> Tensor | None:
    """Take so much of the device's memory that this many GiB are free; 0: nothing."""
    if not gib or device.type == "cpu":
        return None
    room = torch.cuda.mem_get_info(device)[0] - int(gib * GIB)
    if room < 0:
        raise ValueError(f"less than {gib:g} GiB are free as it is")
    return torch.empty(room, dtype=torch.uint8, device=device)


def runner(who: str) -> contender.Runner:
    """Its training loop, the one that train_step.py runs on a CPU."""
    import floor
    import ours
    import peer_builtin
    import peer_peft

    runners: dict[str, Any] = {
        "Likeness": ours.run,
        "built-in": peer_builtin.run,
        "peft+diffusers": peer_peft.run,
        "floor": floor.run,
    }
    run: contender.Runner = runners[who]
    return run


def machine(device: torch.device) -> str:
    """The device and the libraries, in a line."""
    import prepare

    names = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "diffusers", "peft")]
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else "a CPU"
    return ", ".join([kind, *names, f"ComfyUI {prepare.host_version()}"])


def say(out: TextIO, **what: Any) -> None:
    """A line of the protocol."""
    out.write(json.dumps(what) + "\n")
    out.flush()


if __name__ == "__main__":
    sys.exit(main())
