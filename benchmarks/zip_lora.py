"""ZipLoRA's memory beside the dense code's, and LoRA.rar's time beside ZipLoRA's, at SDXL's width.

    .venv/bin/python benchmarks/zip_lora.py            # rank 64, all 70 transformer blocks of SDXL; about 3 GB
    .venv/bin/python benchmarks/zip_lora.py --quick    # every tenth block, scaled up; seconds

The 560 attention projections of SDXL's UNet as bare linear layers (no base model is needed to count what is added), two
LoRAs of them, and one step forth and back. Counted apart, in bytes that torch has allocated:

- factors: the two LoRAs themselves, which any method holds;
- extra: coefficients, their gradients, AdamW's moments, and the most that a layer needs for a moment;
- dense: what the dense code keeps beside the model, the ΔW of both LoRAs in half precision.

LoRA.rar's coefficients of the same pair (query and output projections) are timed against 100 such steps. A real step
goes through the whole model, with more tokens.

Ends with a line a goal, `name figure target ok|short`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import base_model
import torch
from report import Finding
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

base_model.open_pack()

from likeness.lora.delta import LowRankDelta  # noqa: E402, the pack is open now
from likeness.merging.lora_rar import HyperNetwork  # noqa: E402
from likeness.trainers import optimizers  # noqa: E402
from likeness.trainers.zip_branch import zipped  # noqa: E402

GOAL, TIME_GOAL, STEPS = 0.05, 0.01, 100
TEXT, TOKENS = 2048, 256
MIB = 2.0**20


def projections(share: int) -> Iterator[tuple[str, int, int]]:
    """(name, inputs, outputs) of SDXL's attention: 10 blocks of width 640, 60 of 1280; every `share`-th of them."""
    widths = [640] * 10 + [1280] * 60
    for number, width in list(enumerate(widths))[::share]:
        for which, inputs in (("attn1", width), ("attn2", TEXT)):
            for name in ("to_q", "to_k", "to_v", "to_out"):
                wide = inputs if name in ("to_k", "to_v") else width
                yield f"{number}_{which}_{name}", wide, width


class Projections(nn.Module):
    """All of them beside each other; the base weights take no memory."""

    def __init__(self, share: int) -> None:
        super().__init__()
        self.names = []
        for name, inputs, outputs in projections(share):
            layer = nn.Linear(1, 1, bias=False)
            layer.in_features, layer.out_features = inputs, outputs
            layer.weight = nn.Parameter(torch.zeros(1, 1, dtype=torch.bfloat16).expand(outputs, inputs), False)
            setattr(self, name, layer)
            self.names.append(name)


class Peak(TorchDispatchMode):
    """The most bytes in one tensor that is made, which is what a layer needs for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(each, Tensor) and each._base is None:
                self.largest = max(self.largest, each.untyped_storage().nbytes())
        return out


def lora(module: Projections, rank: int, seed: int) -> dict[str, LowRankDelta]:
    chance = torch.Generator().manual_seed(seed)
    found = {}
    for name in module.names:
        layer = getattr(module, name)
        up = torch.randn(layer.out_features, rank, generator=chance).half()
        down = torch.randn(rank, layer.in_features, generator=chance).half()
        found[f"diffusion_model.{name}"] = LowRankDelta(up, down, 1.0, "linear")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    share = 10 if args.quick else 1
    module = Projections(share)
    loras = [lora(module, args.rank, seed) for seed in (1, 2)]
    names = list(loras[0])
    scale = sum(1 for _ in projections(1)) / len(names)  # blocks of both widths are left out alike
    numbers = sum(inputs * outputs for _, inputs, outputs in projections(1))
    began = time.perf_counter()
    with zipped(module, loras, names, torch.device("cpu")) as branches:
        factors, count = branches.sizes()
        parameters = branches.parameters()
        optimizer = optimizers.build("adamw", parameters, 0.01, 0.0)
        with Peak() as peak:
            for name in names:
                layer = branches.layers[name]
                x = torch.ones(1, TOKENS, layer.down.shape[1], dtype=torch.bfloat16)
                out = layer.branch(x, -1)
                assert out is not None
                out.float().square().mean().backward()
            branches.overlap().backward()
        optimizer.step()
        states = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))
        kept = sum(each.nbytes + each.grad.nbytes for each in parameters if each.grad is not None) + states
    step = time.perf_counter() - began
    network = HyperNetwork((640, 1280)).begin(0)
    began = time.perf_counter()
    with torch.no_grad():
        for name in names:
            if name.endswith(("to_q", "to_out")):
                network.coefficients(loras[0][name], loras[1][name])
    predicted = time.perf_counter() - began
    extra = kept * scale + peak.largest
    dense = 2 * 2 * numbers
    print(f"{len(names)} projections, rank {args.rank}, a step of {step * scale:.1f} s on the CPU")
    print(f"coefficients {count * scale / 1e6:.2f} M")
    print(f"factors of both LoRAs {factors * scale / MIB:8.1f} MiB")
    print(f"kept beside them      {kept * scale / MIB:8.1f} MiB (coefficients, gradients, AdamW)")
    print(f"for a moment          {peak.largest / MIB:8.1f} MiB (the largest tensor of a layer, {TOKENS} tokens)")
    print(f"dense code            {dense / MIB:8.1f} MiB (ΔW of both in half precision)")
    share_of = extra / dense
    print(Finding("ziplora-extra-memory", share_of, f"<={GOAL}", share_of <= GOAL).line())
    share_of = predicted / (STEPS * step)
    print(f"LoRA.rar's coefficients {predicted * scale:.3f} s, {STEPS} steps of ZipLoRA {STEPS * step * scale:.1f} s")
    print(Finding("lorarar-time-of-ziplora", share_of, f"<={TIME_GOAL}", share_of <= TIME_GOAL).line())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
