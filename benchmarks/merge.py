"""What it costs to merge LoRAs of SDXL's size into one, against peft and against dense ΔW.

    .venv/bin/python benchmarks/merge.py [--quick] [--markdown] [--counts 2 8 32 100] [--threads 1] [--folder X]

N LoRAs of rank 64 with the shapes of the 722 layers that sd-scripts trains in SDXL's UNet, float16, in files. Each
contender runs in a process of its own, whose peak memory is taken. Ours opens the files, merges and saves, all layers.
With --quick, and the peers always, one layer of each of the eight shapes is merged, and its seconds are scaled by how
often the shape occurs. Errors are ‖merged − wanted‖ / ‖wanted‖ over these eight, and wanted is made here in float64.
Ends with a line a target, and exit status 1 if one is short. All 722 layers take 31 GB of disk for N = 100.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import base_model
import memory
import torch
from report import Finding, _columns, _markdown, targets_met
from resize_lora import sdxl_layers
from torch import Tensor, nn

RANK, ALPHA, DENSITY = 64, 32.0, 0.5
Shape = tuple[int, int]
PEERS = {
    "peft cat": ("linear", (2, 8)),
    "peft svd, economy": ("linear", (2, 8)),
    "peft svd, full": ("linear", (2,)),
    "dense sum, economy SVD": ("linear", (2, 8, 32, 100)),
    "peft ties, economy SVD": ("ties", (2, 8, 32)),
}
"""What each merges by, and of how many LoRAs: beyond, a stack of the widest layer's ΔW alone is gigabytes."""
OURS = {"Likeness linear": "linear", "Likeness ties": "ties"}
FULL_SVD = 1280 * 2048
"""The largest layer whose full SVD is waited for with --quick."""


def strata(every: bool) -> list[tuple[str, Shape, float]]:
    """(layer, shape, how many layers it stands for): all of them, or the first of each shape."""
    layers = list(sdxl_layers(10))
    if every:
        return [(name, shape, 1.0) for name, shape in layers]
    often, first = Counter(shape for _, shape in layers), {shape: name for name, shape in reversed(layers)}
    return [(name, shape, float(often[shape])) for shape, name in sorted(first.items(), key=lambda one: one[1])]


def factors(number: int, layer: str, shape: Shape) -> tuple[Tensor, Tensor]:
    """up and down of one LoRA's layer, float16; singular values fall off as those of trained LoRAs do."""
    from likeness.lora.randomness import generator

    chance, fall = generator(number, "benchmark", layer), torch.logspace(0, -1.5, RANK)[:, None]
    up = 0.02 * torch.randn(shape[0], RANK, generator=chance)
    return up.half(), (0.02 * fall * torch.randn(RANK, shape[1], generator=chance)).half()


def write_lora(path: Path, number: int, every: bool) -> None:
    from likeness.lora.load import save_lora

    out: dict[str, Tensor] = {}
    for name, shape, _ in strata(every):
        out[f"{name}.lora_up.weight"], out[f"{name}.lora_down.weight"] = factors(number, name, shape)
        out[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_lora(path, out, "kohya", "fp16")


def deltas(job: dict[str, Any], layer: str, shape: Shape, dtype: torch.dtype) -> Iterator[Tensor]:
    for number in range(job["count"]):
        up, down = factors(number, layer, shape)
        yield (ALPHA / RANK) * up.to(dtype) @ down.to(dtype)


def wanted(job: dict[str, Any], layer: str, shape: Shape) -> Tensor:
    """The merged ΔW that a rank of 64 is to approximate, by other code than ours."""
    if job["method"] == "linear":
        each = deltas(job, layer, shape, torch.float64)
        return sum(each, start=torch.zeros(shape, dtype=torch.float64))
    kept = []  # each LoRA's entries from the median magnitude on, then the sign of the sum
    plus, minus, above, below = (torch.zeros(shape) for _ in range(4))
    for delta in deltas(job, layer, shape, torch.float32):
        limit = delta.abs().flatten().kthvalue(delta.numel() - int(DENSITY * delta.numel()) + 1).values
        kept.append(delta * (delta.abs() >= limit))
        plus += kept[-1].clamp_min(0)
        minus += kept.pop().clamp_max(0)
        above += delta >= limit
        below += delta <= -limit
    elected = plus + minus >= 0
    return torch.where(elected, plus / above.clamp_min(1), minus / below.clamp_min(1)).double()


class Clock:
    """CPU and wall seconds since the last time it was asked."""

    def __init__(self) -> None:
        self._last = self._now()

    def _now(self) -> tuple[float, float]:
        return time.process_time(), time.perf_counter()

    def lap(self) -> tuple[float, float]:
        before, self._last = self._last, self._now()
        return self._last[0] - before[0], self._last[1] - before[1]


def ours(job: dict[str, Any]) -> dict[str, Any]:
    """Open, merge, save, each timed; the merge layer by layer."""
    from likeness.lora.keys import to_deltas
    from likeness.lora.lazy import open_lora
    from likeness.lora.load import load_lora, save_lora
    from likeness.merging.align import Source
    from likeness.merging.merge import merge_loras
    from likeness.merging.options import MergeOptions, OutputRank

    every, folder = job["every"], Path(job["folder"])
    layers = strata(every)
    parts: list[tuple[float, float]] = []
    clock = Clock()
    sources = [Source(str(i), open_lora(folder / f"{i}.safetensors")) for i in range(job["count"])]
    load = clock.lap()
    options = MergeOptions(job["method"], OutputRank("number", rank=RANK), density=DENSITY, measure=False)
    merged, found = merge_loras(sources, options, progress=lambda *_: parts.append(clock.lap()))
    rest = clock.lap()
    save_lora(folder / "merged.safetensors", merged, "kohya", "fp16")
    save = clock.lap()
    often = {name: times for name, _, times in layers}
    share = sum(often.values()) / len(layers)  # what is not of one layer is of all of them alike
    merge = [sum(often[y.name] * p[k] for y, p in zip(found, parts, strict=True)) + share * rest[k] for k in (0, 1)]
    peak = memory.peak_mib()
    del merged, sources
    result = to_deltas(load_lora(folder / "merged.safetensors"))
    errors = [error(job, name, shape, result[name].dense()) for name, shape, _ in strata(False)]
    return {
        "load": [share * s for s in load],
        "merge": merge,
        "save": [share * s for s in save],
        "peak": peak if every else peak + sum((often[n] - 1) * sum(s) * RANK * 6 / 2**20 for n, s, _ in layers),
        "error": overall(errors),
        "layers": len(layers),
    }


def peer(job: dict[str, Any]) -> dict[str, Any]:
    """One layer of each shape, by the peer's own code; reading and writing files left out."""
    work = by_peft if job["who"].startswith("peft") and job["method"] == "linear" else dense
    merge, errors, used = [0.0, 0.0], [], []
    for name, shape, times in strata(False):
        if job["who"] == "peft svd, full" and job["quick"] and math.prod(shape) > FULL_SVD:
            continue
        run = work(job, name, shape)
        clock = Clock()
        found = run()
        spent = clock.lap()
        merge = [total + times * s for total, s in zip(merge, spent, strict=True)]
        used.append(name)
        errors.append(error(job, name, shape, found[0].float() @ found[1].float()))
    return {"merge": merge, "peak": memory.peak_mib(), "error": overall(errors), "layers": len(used)}


def by_peft(job: dict[str, Any], layer: str, shape: Shape) -> Callable[[], tuple[Tensor, Tensor]]:
    """``add_weighted_adapter`` on a model of this layer alone; making the model and its adapters is not timed."""
    from peft import LoraConfig, LoraModel

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"])
    names = [f"lora{i}" for i in range(job["count"])]
    model = LoraModel(nn.ModuleDict({"layer": nn.Linear(shape[1], shape[0], bias=False)}), config, names[0])
    for name in names[1:]:
        model.peft_config[name] = config
        model.inject_adapter(model.model, name)
    module: Any = model.model["layer"]
    with torch.no_grad():
        for number, name in enumerate(names):
            up, down = factors(number, layer, shape)
            module.lora_B[name].weight.copy_(up)
            module.lora_A[name].weight.copy_(down)

    def run() -> tuple[Tensor, Tensor]:
        kind = {"svd_rank": RANK, "svd_full_matrices": "full" in job["who"]} if "svd" in job["who"] else {}
        how = "svd" if kind else "cat"
        with torch.no_grad():
            model.add_weighted_adapter(names, [1.0] * len(names), "merged", how, **kind)
        scale = module.scaling["merged"]
        return scale * module.lora_B["merged"].weight.detach(), module.lora_A["merged"].weight.detach()

    return run


def dense(job: dict[str, Any], layer: str, shape: Shape) -> Callable[[], tuple[Tensor, Tensor]]:
    """All ΔW dense in float32, merged (by ``peft.utils.merge_utils.ties`` or a sum), then the economy SVD."""
    from peft.utils.merge_utils import ties

    pairs = [tuple(f.float() for f in factors(i, layer, shape)) for i in range(job["count"])]

    def run() -> tuple[Tensor, Tensor]:
        each = ((ALPHA / RANK) * (up @ down) for up, down in pairs)
        merged = (
            sum(each, start=torch.zeros(shape))
            if job["method"] == "linear"
            else ties(list(each), torch.ones(len(pairs)), DENSITY)
        )
        u, s, v = torch.linalg.svd(merged, full_matrices=False)
        return u[:, :RANK] * s[:RANK], v[:RANK]

    return run


def error(job: dict[str, Any], layer: str, shape: Shape, found: Tensor) -> list[float]:
    """(‖merged − wanted‖², ‖wanted‖², what the best of rank 64 would leave of it, where it is known) of one layer."""
    aim = wanted(job, layer, shape)
    return [float((found.double() - aim).square().sum()), float(aim.square().sum())]


def overall(errors: list[list[float]]) -> float:
    return math.sqrt(sum(lost for lost, _ in errors) / sum(all_ for _, all_ in errors))


def started(job: dict[str, Any]) -> dict[str, Any]:
    """The job in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--job", json.dumps(job)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{job['who']} of {job['count']} LoRAs failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = {**job, **json.loads(done.stdout.splitlines()[-1])}
    cpu, peak, wrong = found["merge"][0], found["peak"], found["error"]
    sys.stderr.write(f"{job['who']}, {job['count']} LoRAs: {cpu:.1f} CPU s, {peak:.0f} MiB, error {wrong:.5f}\n")
    return found


def judge(rows: list[dict[str, Any]]) -> list[Finding]:
    by = {(row["who"], row["count"]): row for row in rows}
    found: list[Finding] = []

    def at_least(name: str, figure: float, least: float) -> None:
        found.append(Finding(name, round(figure, 1), f">={least:g}", round(figure, 1) >= least))

    for (who, count), row in by.items():
        best = by.get(("dense sum, economy SVD" if "linear" in who else "peft ties, economy SVD", count))
        if who in OURS and best:
            above = row["error"] / best["error"] - 1
            found.append(Finding(f"error-above-svd:{OURS[who]}:{count}", above, "<=0.002", above <= 0.002))
            ratio = best["merge"][0] / row["merge"][0]
            if count == 2:
                at_least(f"against-economy-svd:{OURS[who]}:2", ratio, 25 if OURS[who] == "linear" else 5)
    peaks = [row["peak"] / 1024 for (who, count), row in by.items() if who in OURS and count == 100]
    if peaks:
        found.append(Finding("peak-GiB:100", round(max(peaks), 2), "<=6", max(peaks) <= 6))
    return found


def table(rows: list[dict[str, Any]], markdown: bool) -> str:
    head = ["LoRAs", "by", "layers", "load, CPU s", "merge, CPU s", "save, CPU s", "all, wall s", "peak MiB", "error"]
    body = []
    for row in rows:
        parts = [row[part] for part in ("load", "merge", "save") if part in row]
        body.append(
            [
                str(row["count"]),
                row["who"],
                str(row["layers"]),
                *(f"{row[part][0]:.1f}" if part in row else "–" for part in ("load", "merge", "save")),
                f"{sum(part[1] for part in parts):.1f}",
                f"{row['peak']:.0f}",
                f"{row['error']:.5f}",
            ]
        )
    return (_markdown if markdown else _columns)(head, body)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one layer of each shape for ours too; scaled")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 8, 32, 100])
    parser.add_argument("--only", nargs="+", help="contenders whose name has one of these words in it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", help="where the files go for the time; a new one in the system's by default")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    args = parser.parse_args()
    base_model.open_pack()
    if args.job:
        job = json.loads(args.job)
        torch.set_num_threads(job["threads"])
        sys.stdout.write(json.dumps((ours if job["who"] in OURS else peer)(job)) + "\n")
        return 0
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        common = {"folder": folder, "threads": args.threads, "quick": args.quick, "every": not args.quick}
        written = 0
        for count in sorted(args.counts):
            for number in range(written, count):
                write_lora(Path(folder) / f"{number}.safetensors", number, not args.quick)
            written = count
            peers = [(who, method) for who, (method, counts) in PEERS.items() if count in counts]
            for who, method in [*OURS.items(), *peers]:
                slow = args.quick and count > 8 and who == "peft ties, economy SVD"
                if not slow and (not args.only or any(word in who for word in args.only)):
                    rows.append(started({"who": who, "method": method, "count": count, **common}))
    findings = judge(rows)
    lines = [
        f"Rank {RANK} to {RANK}, {args.threads} threads. Of fewer than 722 layers seconds are scaled: one "
        "layer of each shape, times how often it occurs; our peak then has the rest of the result added.",
        "",
        table(rows, args.markdown),
        "",
        targets_met(findings, args.markdown),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(not all(finding.ok for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
