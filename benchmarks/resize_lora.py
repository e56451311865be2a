"""What it costs to cut a finished LoRA to smaller ranks, against the SVD of the dense ΔW that other tools make.

    .venv/bin/python benchmarks/resize_lora.py [--quick] [--markdown]

A LoRA of rank 64 with the shapes of an SDXL UNet's 722 attention, feed-forward and projection layers, float16, is
inspected and cut to rank 16. One layer of each shape is also cut by `torch.linalg.svd` of the dense float32 ΔW, and the
two results' errors are compared. CPU seconds, one thread unless --threads says otherwise. Ends with a line a target,
and exit status 1 if one is short.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator

import base_model
import torch
from report import Finding, _columns, _markdown
from torch import Tensor

RANK, NEW_RANK = 64, 16
# (block, channels, transformer blocks in it)
BLOCKS = (
    *((f"input_blocks.{i}.1", 640, 2) for i in (4, 5)),
    *((f"input_blocks.{i}.1", 1280, 10) for i in (7, 8)),
    ("middle_block.1", 1280, 10),
    *((f"output_blocks.{i}.1", 1280, 10) for i in (0, 1, 2)),
    *((f"output_blocks.{i}.1", 640, 2) for i in (3, 4, 5)),
)
TEXT = 2048


def sdxl_layers(most_depth: int) -> Iterator[tuple[str, tuple[int, int]]]:
    """(canonical name, shape) of every layer that sd-scripts trains in SDXL's UNet; 722 where most_depth is 10."""
    for block, width, depth in BLOCKS:
        name = f"diffusion_model.{block}"
        yield from ((f"{name}.{end}", (width, width)) for end in ("proj_in", "proj_out"))
        for i in range(min(depth, most_depth)):
            inner = f"{name}.transformer_blocks.{i}"
            for attention, text in (("attn1", width), ("attn2", TEXT)):
                yield f"{inner}.{attention}.to_q", (width, width)
                yield from ((f"{inner}.{attention}.to_{one}", (width, text)) for one in "kv")
                yield f"{inner}.{attention}.to_out.0", (width, width)
            yield f"{inner}.ff.net.0.proj", (8 * width, width)
            yield f"{inner}.ff.net.2", (width, 4 * width)


def make_lora(most_depth: int) -> dict[str, Tensor]:
    """Random factors whose singular values fall off, as those of trained LoRAs do; alpha is half the rank."""
    chance = torch.Generator().manual_seed(0)
    fall = torch.logspace(0, -1.5, RANK)[:, None]
    out = {}
    for name, (rows, columns) in sdxl_layers(most_depth):
        out[f"{name}.lora_up.weight"] = (0.02 * torch.randn(rows, RANK, generator=chance)).half()
        out[f"{name}.lora_down.weight"] = (0.02 * fall * torch.randn(RANK, columns, generator=chance)).half()
        out[f"{name}.alpha"] = torch.tensor(RANK / 2)
    return out


def dense_cut(up: Tensor, down: Tensor) -> Tensor:
    """The best approximation of rank NEW_RANK by the SVD of the dense ΔW in float32."""
    u, s, v = torch.linalg.svd(0.5 * up.float() @ down.float(), full_matrices=False)
    return (u[:, :NEW_RANK] * s[:NEW_RANK]) @ v[:NEW_RANK]


def compare(layer: dict[str, Tensor], cut: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> tuple[float, ...]:
    """(our seconds, the dense SVD's, our ‖ΔW − cut‖ / ‖ΔW‖ less theirs) of one layer."""

    def factors(of: dict[str, Tensor]) -> list[Tensor]:
        return [next(t for key, t in of.items() if key.endswith(end)) for end in ("_up.weight", "_down.weight")]

    up, down = factors(layer)
    ours, theirs = timed(lambda: cut(layer), 5), timed(lambda: dense_cut(up, down), 1)
    new_up, new_down = factors(cut(layer))
    delta = 0.5 * up.double() @ down.double()
    errors = [(delta - found).norm() / delta.norm() for found in (new_up @ new_down, dense_cut(up, down))]
    return ours, theirs, float(errors[0] - errors[1])


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median of CPU seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a ninth of the layers, and no dense SVD of the widest")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base_model.open_pack()
    from likeness.lora.inspection import inspect_lora
    from likeness.lora.resize import Truncation, resize_lora

    how = Truncation("rank", rank=NEW_RANK)
    lora = make_lora(1 if args.quick else 10)
    names = [key.removesuffix(".alpha") for key in lora if key.endswith(".alpha")]
    whole = {
        "resize, all layers": timed(lambda: resize_lora(lora, how), 1),
        "inspect, all layers": timed(lambda: inspect_lora(lora), 1),
    }
    by_shape: dict[tuple[int, int], str] = {}
    for name in names:
        by_shape.setdefault((lora[f"{name}.lora_up.weight"].shape[0], lora[f"{name}.lora_down.weight"].shape[1]), name)
    rows, ratios, apart = [], [], 0.0
    for (height, width), name in sorted(by_shape.items(), key=lambda item: item[0][0] * item[0][1]):
        if args.quick and height * width > 3_000_000:
            continue
        layer = {key: tensor for key, tensor in lora.items() if key.startswith(f"{name}.")}
        ours, theirs, difference = compare(layer, lambda one: resize_lora(one, how)[0])
        apart = max(apart, difference)
        ratios.append(theirs / ours)
        rows.append([f"{height}×{width}", f"{1000 * ours:.1f}", f"{1000 * theirs:.0f}", f"{theirs / ours:.0f}"])
    most = 2.0 if args.quick else 10.0
    findings = [
        Finding("against-dense-svd", round(min(ratios), 1), ">=10", min(ratios) >= 10),
        Finding("error-above-dense-svd", apart, "<=1e-06", apart <= 1e-6),
        *(Finding(f"seconds:{what.split(',')[0]}", round(s, 2), f"<={most:g}", s <= most) for what, s in whole.items()),
    ]
    draw = _markdown if args.markdown else _columns
    head = ["layer", "Likeness, ms", "dense SVD, ms", "times"]
    lines = [
        f"{len(names)} layers, rank {RANK} to {NEW_RANK}, {args.threads} threads; CPU time.",
        "",
        draw(head, rows),
        "",
        *(f"{what}: {seconds:.2f} s" for what, seconds in whole.items()),
        "",
        *(finding.line() for finding in findings),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(not all(finding.ok for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
