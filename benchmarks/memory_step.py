"""What checkpointing and block swap save and cost, on models of real width.

    .venv/bin/python benchmarks/memory_step.py [--quick] [--markdown]

Likeness alone: `trainers.loop.train` through the HostDenoiser, once as it is, once with gradient checkpointing, once
with checkpointing and all blocks swapped out, each in a process of its own. Random weights, few blocks, widths as in
the real models. Ends with a line a target, and exit status 1 if one is short.

Peak is VmHWM of two steps less what the process held before the model was made, so the weights count; in these steps
each tensor has pages of its own, so that it counts as long as it lives and no longer (with the heap as it comes, the
holes that freed tensors leave are up to half of the peak, and no two runs are alike). Seconds are CPU seconds of the
steps after these, with a heap that keeps what is freed. The kernel must permit to reset VmHWM. On a CPU blocks live
in temporary files, so TMPDIR should be on a disk and not in memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import base_model
import memory
import torch

UNET: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [1, 1],
    "channel_mult": (1, 2),
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1],
    "transformer_depth_output": [1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": 768,
    "use_linear_in_transformer": False,
    "legacy": False,
}
# (class of comfy.supported_models, its configuration, latent, text). SDXL: 1280 channels only in the middle.
MODELS: dict[str, tuple[str, dict[str, Any], tuple[int, ...], tuple[int, int], int]] = {
    "sd15": ("SD15", UNET, (4, 32, 32), (77, 768), 0),
    "sdxl": (
        "SDXL",
        {
            **UNET,
            "num_res_blocks": [1, 1, 1],
            "channel_mult": (1, 2, 4),
            "num_heads": -1,
            "num_head_channels": 64,
            "transformer_depth": [0, 1, 2],
            "transformer_depth_output": [0, 0, 1, 1, 2, 2],
            "transformer_depth_middle": 2,
            "context_dim": 2048,
            "use_linear_in_transformer": True,
            "adm_in_channels": 2816,
            "num_classes": "sequential",
        },
        (4, 32, 32),
        (77, 2048),
        1280,
    ),
    "sd3": (
        "SD3",
        {
            "in_channels": 16,
            "patch_size": 2,
            "out_channels": 16,
            "depth": 24,
            "input_size": None,
            "adm_in_channels": 2048,
            "context_embedder_config": {
                "target": "torch.nn.Linear",
                "params": {"in_features": 4096, "out_features": 1536},
            },
            "num_patches": 4096,
            "pos_embed_max_size": 64,
            "pos_embed_scaling_factor": None,
        },
        (16, 32, 32),
        (77, 4096),
        2048,
    ),
}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "checkpointing": {"gradient_checkpointing": True},
    "checkpointing + block swap": {"gradient_checkpointing": True, "offload_blocks": 1.0},
}


_BEFORE = 4
"""Steps before those that are timed: one to set up, two whose memory counts, one to warm the heap up."""


def model_of(name: str) -> Any:
    """A loaded MODEL of the host with random weights, fp32."""
    import comfy.model_management
    import comfy.model_patcher
    import comfy.supported_models

    kind, unet, *_ = MODELS[name]
    if name == "sd3":
        unet = {**unet, "num_blocks": 6}  # the width is 64 times the depth
    config = getattr(comfy.supported_models, kind)({**unet, "dtype": torch.float32})
    config.set_inference_dtype(torch.float32, None)
    torch.manual_seed(0)
    model = config.get_model({}, "", device=torch.device("cpu"))
    with torch.no_grad():
        noise = torch.randn(1 << 20) * 0.02
        for parameter in model.parameters():
            flat = parameter.view(-1)
            for part in flat.split(len(noise)):  # drawing a billion numbers takes longer than the steps
                part.copy_(noise[: len(part)])
    device = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=device)
    comfy.model_management.load_models_gpu([patcher])
    return patcher


def measure(name: str, mode: str, batch: int, steps: int, threads: int) -> dict[str, float]:
    """In this process: peak MiB above an empty one, and CPU seconds of a step, the median of `steps`."""
    torch.set_num_threads(threads)
    base_model.open_host()
    base_model.open_pack()
    import peft  # noqa: F401  (libraries are not what a step costs)

    from likeness.nodes.host import HostDenoiser, autograd_weights, ordinary_tensors
    from likeness.nodes.host.conditioning import detach_cond, make_cond
    from likeness.trainers.config import TrainingConfig
    from likeness.trainers.dataset import Example, TrainingSet
    from likeness.trainers.loop import train
    from likeness.trainers.outcome import Callbacks

    empty = memory.rss_mib()
    memory.pages_of_their_own()
    patcher = model_of(name)
    _, _, shape, text, pooled = MODELS[name]
    conditioning = [[torch.randn(1, *text), {"pooled_output": torch.randn(1, pooled)} if pooled else {}]]
    times: list[float] = []
    config = TrainingConfig(steps=_BEFORE + steps + 1, batch_size=batch, targets="attention", **MODES[mode])
    with ordinary_tensors(), autograd_weights(patcher.model), tempfile.TemporaryDirectory() as folder:
        latents = torch.randn(*shape)
        cond = detach_cond(make_cond(patcher, conditioning, latents[None], {}), torch.device("cpu"))
        data = TrainingSet((Example(latents, None, cond, None, repeats=batch),), cond)

        peaks: list[float] = []

        def progress(step: int, *_: Any) -> None:
            if step == 1:  # what was made to set up, weights on their way out included, is not a step's
                memory.reset_peak()
            if step == 3:
                peaks.append(memory.peak_mib())
                memory.keep_freed()
            if step >= _BEFORE:
                times.append(time.process_time())

        train(HostDenoiser(patcher), data, config, Path(folder), Callbacks(progress=progress))
    laps = [after - before for before, after in itertools.pairwise(times[:-1])]  # the last two come together
    return {"seconds": statistics.median(laps), "peak": peaks[0] - empty}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps, and batch 4 for the first model only")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "MODE", "BATCH"), help="one measurement, as JSON")
    args = parser.parse_args()
    steps = 3 if args.quick else 8
    if args.one:
        name, mode, batch = args.one
        out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        out.write(json.dumps(measure(name, mode, int(batch), steps, args.threads)) + "\n")
        out.close()
        return 0
    rows, short = [], False
    findings = []
    for name in args.models:
        for batch in args.batches:
            if args.quick and batch > 1 and name != args.models[0]:
                continue
            found = {}
            for mode in MODES:
                command = [sys.executable, __file__, "--one", name, mode, str(batch), "--threads", str(args.threads)]
                command += ["--quick"] if args.quick else []
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
                found[mode] = json.loads(done.stdout.splitlines()[-1])
                relative = [found[mode][key] / found["plain"][key] for key in ("peak", "seconds")]
                rows.append([name, str(batch), mode, *(f"{x:.3g}" for x in (*found[mode].values(), *relative))])
            most, plain = found["checkpointing + block swap"], found["plain"]
            for what, key, target in (("peak", "peak", 0.35), ("seconds", "seconds", 1.6)):
                figure = round(most[key] / plain[key], 2)
                short |= figure > target
                end = "ok" if figure <= target else "short"
                findings.append(f"{what}-with-swap:{name}:batch-{batch} {figure:g} <={target} {end}")
    head = ["model", "batch", "mode", "CPU s/step", "peak MiB", "peak against plain", "seconds against plain"]
    lines = [head, ["---"] * len(head), *rows] if args.markdown else [head, *rows]
    sys.stdout.write("\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + "\n".join(findings) + "\n")
    return int(short)


if __name__ == "__main__":
    sys.exit(main())
