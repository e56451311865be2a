"""What it costs to score pictures, against the plain loop that papers' scripts are, with the same network.

    .venv/bin/python benchmarks/metrics.py [--quick] [--markdown]

1,000 synthetic pictures of 64 to 256 pixels, 250 prompts, eight references: CLIP-T, CLIP-I, nearest reference. Ours
goes through the nodes' MetricModel on the host's CPU: batches of 16, each picture embedded once for all three. The
loop takes one picture at a time through transformers' image processor and CLIP; it embeds the references once, and a
picture once for each metric, as separate scripts do. The second row lets the loop embed each picture once for all.
The network is a small random CLIP in transformers' layout, so that what is measured is the way around it; a real
one's arithmetic is the same for both.

Then SSIM of the same pictures with their mirror images, against torchmetrics one pair at a time;
and FID's distance at d = 2048, against scipy's square root of the product of the covariances. CPU seconds, one thread
unless --threads says otherwise. Ends with a line a target, and exit status 1 if one is short.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import base_model
import numpy as np
import torch
from report import Finding, _columns, _markdown
from torch import Tensor

SIDES = (64, 96, 128, 192, 256)
WIDTH = 2048


def synthetic(count: int, seed: int) -> list[Tensor]:
    """Smooth coloured fields with some noise, (3, S, S) in [0, 1], sides in turn."""
    chance = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        side = SIDES[number % len(SIDES)]
        coarse = torch.rand(1, 3, 5, 5, generator=chance)
        field = torch.nn.functional.interpolate(coarse, side, mode="bilinear")[0]
        found.append((field + 0.05 * torch.randn(3, side, side, generator=chance)).clamp(0, 1))
    return found


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came out."""
    started = time.process_time()
    found = work()
    return time.process_time() - started, found


def ours(folder: Path, pictures: list[Tensor], prompts: list[str], references: list[Tensor]) -> dict[str, list[float]]:
    """Scores of each picture, through what the nodes use."""
    from likeness.metrics.clip_score import prompt_cosines
    from likeness.metrics.similarity import cosine_similarities
    from likeness.nodes.host import metric_model as host

    host._known.clear()
    model = host.metric_model(folder.name, "auto")
    texts = model.text_features(list(dict.fromkeys(prompts)))
    place = {text: number for number, text in enumerate(dict.fromkeys(prompts))}
    found: dict[str, list[float]] = {}
    of_prompt = prompt_cosines(model.features(pictures), texts[[place[text] for text in prompts]])
    found["CLIP-T"] = of_prompt.tolist()
    for name in ("CLIP-I", "nearest"):  # two nodes: each asks for the pictures' features
        compared = cosine_similarities(model.features(pictures), model.features(references))
        found[name] = (compared.per_picture if name == "CLIP-I" else compared.nearest_per_picture).tolist()
    return found


def loop(folder: Path, pictures: list[Tensor], prompts: list[str], references: list[Tensor], shared: bool) -> Any:
    """The same one picture at a time. `shared`: each picture is embedded once for all metrics."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    network = CLIPModel.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    side = network.config.vision_config.image_size
    processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})

    def unit(found: Any) -> Tensor:
        rows = found if isinstance(found, Tensor) else found.pooler_output
        return rows / rows.norm(dim=-1, keepdim=True)

    def embed(picture: Tensor) -> Tensor:
        levels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
        return unit(network.get_image_features(pixel_values=processor(levels, return_tensors="pt")["pixel_values"]))[0]

    def words(prompt: str) -> Tensor:
        tokens = tokenizer(prompt, truncation=True, max_length=20, return_tensors="pt")
        return unit(network.get_text_features(**tokens))[0]

    found: dict[str, list[float]] = {"CLIP-T": [], "CLIP-I": [], "nearest": []}
    with torch.no_grad():
        known = torch.stack([embed(reference) for reference in references])
        for picture, prompt in zip(pictures, prompts, strict=True):
            row = embed(picture)
            found["CLIP-T"].append(float(row @ words(prompt)))
            cosines = known @ (row if shared else embed(picture))
            found["CLIP-I"].append(float(cosines.mean()))
            cosines = known @ (row if shared else embed(picture))
            found["nearest"].append(float(cosines.max()))
    return found


def our_ssim(pictures: list[Tensor]) -> list[float]:
    """Of each picture with its mirror image, those of one size in batches of eight."""
    from likeness.metrics.pairs import ssim_per_pair
    from likeness.metrics.preprocess import same_sizes

    found = [0.0] * len(pictures)
    for places in same_sizes(pictures).values():
        for first in range(0, len(places), 8):
            batch = torch.stack([pictures[i] for i in places[first : first + 8]])
            for i, value in zip(places[first : first + 8], ssim_per_pair(batch, batch.flip(3)).tolist(), strict=True):
                found[i] = value
    return found


def their_ssim(pictures: list[Tensor]) -> list[float]:
    """The same by torchmetrics."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    return [float(ssim(one[None], one[None].flip(3), data_range=1.0)) for one in pictures]


def scipy_distance(one: np.ndarray, other: np.ndarray) -> float:
    """FID as it is usually computed."""
    from scipy.linalg import sqrtm

    covariances = [np.cov(rows, rowvar=False) for rows in (one, other)]
    root = sqrtm(covariances[0] @ covariances[1])
    apart = one.mean(0) - other.mean(0)
    return float(apart @ apart + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(root).real)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 pictures; FID of sets of 1,000 instead of 5,000")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base_model.open_host()
    base_model.open_pack()
    import folder_paths

    from likeness.devtools import tiny_backbones
    from likeness.metrics.fid import fid_distance

    count = 200 if args.quick else 1000
    pictures, references = synthetic(count, 0), synthetic(8, 1)
    texts = [f"a {chr(97 + i % 26)} and a {chr(97 + i // 26)}" for i in range(count // 4)]
    prompts = [text for text in texts for _ in range(4)]
    with tempfile.TemporaryDirectory() as base:
        folder_paths.add_model_folder_path("metrics", base)
        folder = tiny_backbones.clip(Path(base) / "clip", image_size=224, patch_size=32)
        loop(folder, pictures[:2], prompts[:2], references, True)  # imports are no part of either
        ours(folder, pictures[:2], prompts[:2], references)
        mine, my_scores = timed(lambda: ours(folder, pictures, prompts, references))
        apart, their_scores = timed(lambda: loop(folder, pictures, prompts, references, False))
        shared, _ = timed(lambda: loop(folder, pictures, prompts, references, True))
    their_ssim(pictures[:2])
    near, my_scores["SSIM"] = timed(lambda: our_ssim(pictures))
    far, their_scores["SSIM"] = timed(lambda: their_ssim(pictures))
    worst = max(abs(a - b) for name in my_scores for a, b in zip(my_scores[name], their_scores[name], strict=True))
    sets = 1000 if args.quick else 5000
    chance = torch.Generator().manual_seed(0)
    spread = torch.rand(WIDTH, generator=chance, dtype=torch.float64) + 0.1
    features = [(torch.randn(sets, WIDTH, generator=chance, dtype=torch.float64) + i * 0.05) * spread for i in (0, 1)]
    quick, distance = timed(lambda: fid_distance(*features))
    slow, theirs = timed(lambda: scipy_distance(*(rows.numpy() for rows in features)))
    off = abs(distance - theirs) / theirs
    draw = _markdown if args.markdown else _columns
    rows = [
        [f"{count} pictures, three metrics", f"{mine:.1f}", f"{apart:.1f}", f"{apart / mine:.1f}"],
        ["the same, the loop embedding once", f"{mine:.1f}", f"{shared:.1f}", f"{shared / mine:.1f}"],
        [f"SSIM of {count} pairs", f"{near:.1f}", f"{far:.1f}", f"{far / near:.1f}"],
        [f"FID, {sets} × {WIDTH} twice", f"{quick:.1f}", f"{slow:.1f}", f"{slow / quick:.1f}"],
    ]
    findings = [
        Finding("against-plain-loop", round(apart / mine, 1), ">=3", apart / mine >= 3),
        Finding("scores-differ", worst, "<=0.01", worst <= 0.01),
        Finding("fid-against-sqrtm", round(slow / quick, 1), ">=5", slow / quick >= 5),
        Finding("fid-differs", off, "<=1e-06", off <= 1e-6),
    ]
    lines = [
        f"{args.threads} threads; CPU seconds.",
        "",
        draw(["what", "Likeness, s", "peer, s", "times"], rows),
        "",
        *(finding.line() for finding in findings),
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(not all(finding.ok for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
