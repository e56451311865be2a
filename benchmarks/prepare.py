"""Write what all contenders read: weights.safetensors and stream.safetensors. Started by train_step.py.

`python prepare.py FOLDER MODEL STEPS SEED THREADS` prints one JSON line about the machine.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path

import base_model
import torch
from models import MODELS


def main() -> int:
    folder, model = Path(sys.argv[1]), MODELS[sys.argv[2]]
    steps, seed, threads = map(int, sys.argv[3:])
    load = os.getloadavg()[0]
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    base_model.open_host()
    base_model.open_pack()
    size = base_model.write_weights(model, folder / "weights.safetensors", seed)
    import ours

    ours.draw_stream(model, steps, seed).save(folder / "stream.safetensors")
    versions = {name: importlib.metadata.version(name) for name in ("torch", "diffusers", "peft")}
    versions["ComfyUI"] = host_version()
    sys.stdout.write(
        json.dumps(
            {
                "machine": f"{_processor()}, {os.cpu_count()} cores",
                "load": round(load, 2),
                "parameters": size,
                "versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
            }
        )
        + "\n"
    )
    return 0


def host_version() -> str:
    for line in (base_model.host_folder() / "comfyui_version.py").read_text().splitlines():
        if line.startswith("__version__"):
            return line.split("=")[1].strip().strip('"')
    return "unknown"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
