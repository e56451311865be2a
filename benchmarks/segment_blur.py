"""What Image-Alchemy's mask work costs at 1024²: find, blur, composite, without the diffusion steps; and its parts
against kornia's distance transform and a dense two-dimensional convolution, in one run.

    .venv/bin/python benchmarks/segment_blur.py [--quick] [--markdown]

CPU seconds of one thread unless --threads says otherwise, medians: what a quiet core takes, whatever else runs. Ends
with a line a target, and exit status 1 if one is short. `--quick` measures the dense convolution and kornia's transform
at 256², where they take no minutes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import base_model
import torch
from report import Finding, _columns, _markdown
from torch import Tensor
from torch.nn import functional

SIZE = 1024
KERNEL, SIGMA = 151, 100.0


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median of CPU seconds, after one round that does not count."""
    if repeats > 1:
        work()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return statistics.median(seconds)


def scene(size: int) -> tuple[Tensor, Tensor]:
    """(3, size, size): a disc on a ground that runs from one colour to another; and the disc (size, size)."""
    along = torch.linspace(0, 1, size)
    ground = torch.stack([along[None].expand(size, -1), along[:, None].expand(-1, size), torch.full((size, size), 0.6)])
    places = torch.arange(size)
    mask = ((places[:, None] - size * 0.55) ** 2 + (places[None] - size * 0.4) ** 2 < (size * 0.22) ** 2).float()
    return torch.where(mask > 0, torch.tensor([0.9, 0.2, 0.1])[:, None, None], ground), mask


def dense(picture: Tensor) -> Tensor:
    """The Gaussian as one kernel of two dimensions."""
    offset = torch.arange(KERNEL) - KERNEL // 2
    kernel = torch.exp(-(offset[:, None] ** 2 + offset[None] ** 2) / (2 * SIGMA**2))
    padded = functional.pad(picture[:, None], [KERNEL // 2] * 4, mode="replicate")
    return functional.conv2d(padded, (kernel / kernel.sum())[None, None])[:, 0]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the peers at 256² only")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base_model.open_pack()
    from kornia.contrib import distance_transform

    from likeness.segmentation.blur import Blur, blur_subject, gaussian
    from likeness.segmentation.crop import blend
    from likeness.segmentation.masks import distance
    from likeness.segmentation.subject import load_subject_segmenter

    finder = load_subject_segmenter()
    picture, mask = scene(SIZE)

    def whole() -> Tensor:
        found = finder.probability(picture[None])[0]
        blurred, weights = blur_subject(picture, (found > 0.5).float(), Blur())
        return blend(picture, blurred, weights)

    parts = {
        "find, blur and composite": timed(whole, 5),
        "find": timed(lambda: finder.probability(picture[None]), 5),
        "blur, exponential decay": timed(lambda: blur_subject(picture, mask, Blur()), 5),
        "distances of the mask": timed(lambda: distance(mask), 5),
    }
    size = 256 if args.quick else SIZE
    small, small_mask = scene(size)
    ours = timed(lambda: gaussian(small, KERNEL, SIGMA), 5), timed(lambda: distance(small_mask), 5)
    theirs = timed(lambda: dense(small), 1), timed(lambda: distance_transform(small_mask[None, None]), 1)
    error = float((gaussian(small, KERNEL, SIGMA) - dense(small)).abs().max())
    off = float((distance_transform(small_mask[None, None])[0, 0] - distance(small_mask)).abs().max())
    whole_seconds = parts["find, blur and composite"]
    findings = [
        Finding("seconds:find-blur-composite", round(whole_seconds, 2), "<=3", whole_seconds <= 3),
        Finding("blur-against-dense-convolution", round(theirs[0] / ours[0], 1), ">=5", theirs[0] >= 5 * ours[0]),
        Finding("blur-difference-from-dense", error, "<=1e-05", error <= 1e-5),
        Finding("distances-against-kornia", round(theirs[1] / ours[1]), ">=5", theirs[1] >= 5 * ours[1]),
    ]
    draw = _markdown if args.markdown else _columns
    rows = [[what, f"{1000 * seconds:.0f}"] for what, seconds in parts.items()]
    against = [
        [f"Gaussian blur, {size}²", f"{1000 * ours[0]:.0f}", f"{1000 * theirs[0]:.0f}", "dense convolution"],
        [f"distances, {size}²", f"{1000 * ours[1]:.1f}", f"{1000 * theirs[1]:.0f}", "kornia's distance transform"],
    ]
    lines = [
        f"One picture of {SIZE}², {args.threads} thread(s); CPU time.",
        "",
        draw(["part", "ms"], rows),
        "",
        draw(["part", "Likeness, ms", "peer, ms", "peer"], against),
        "",
        f"kornia's distances are off by up to {off:.1f} pixels.",
        "",
        *(finding.line() for finding in findings),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(not all(finding.ok for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
