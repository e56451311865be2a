"""Teach the pack's built-in subject finder: composites of the artwork, whose transparency is the true mask.

`python -m tinyworld.train_segmenter` fetches and draws the artwork where that was not done, trains, and writes
segmentation/weights/subject.safetensors. Pretraining's subjects and styles only; the held-out ones judge it.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from .classifier import soften
from .dataset import BACKGROUNDS, WHITE
from .pictures import SIZE, download_packs, draw_all, load_packs
from .resume import load_progress, save_progress
from .split import load_split
from .vae import TinyVAE

logger = logging.getLogger(__name__)
EMPTY, TWO = 0.06, 0.15  # shares of pictures with nothing on them, and with two subjects
LAST = 0.65  # from this share of the steps on, half of the pictures are as a model draws them


def plain(rng: np.random.Generator) -> Tensor:
    """(3, 64, 64) of white, a colour of tinyworld's, or any colour."""
    kind = rng.random()
    known = list(BACKGROUNDS.values())
    colour = WHITE if kind < 0.3 else known[rng.integers(len(known))] if kind < 0.65 else rng.integers(0, 256, 3)
    return (torch.tensor(np.asarray(colour, np.float32)) / 255)[:, None, None].expand(3, SIZE, SIZE)


def gradient(rng: np.random.Generator) -> Tensor:
    """Two colours that run into each other in some direction."""
    angle = rng.random() * 2 * math.pi
    steps = torch.linspace(-1, 1, SIZE)
    along = (steps[:, None] * math.sin(angle) + steps[None] * math.cos(angle)) / 2.8 + 0.5
    one, other = (torch.tensor(rng.random(3, np.float32))[:, None, None] for _ in range(2))
    return one * along + other * (1 - along)


def textured(rng: np.random.Generator, rgba: NDArray[np.uint8]) -> Tensor:
    """Noise of some coarseness, stripes, or a piece of another picture, enlarged and softened."""
    kind = rng.random()
    base = plain(rng)
    if kind < 0.4:
        cells = int(rng.integers(3, 33))
        noise = torch.tensor(rng.standard_normal((1, 3, cells, cells), np.float32))
        spread = float(rng.random()) * 0.25
        return (base + spread * functional.interpolate(noise, size=SIZE, mode="bicubic")[0]).clamp(0, 1)
    if kind < 0.65:
        angle, width = rng.random() * math.pi, float(rng.integers(3, 14))
        places = torch.arange(SIZE, dtype=torch.float32)
        along = places[:, None] * math.sin(angle) + places[None] * math.cos(angle)
        share = ((along / width).sin() * 0.5 + 0.5) * (0.2 + 0.8 * float(rng.random()))
        return base * (1 - share) + plain(rng) * share
    picture = torch.from_numpy(rgba[rng.integers(len(rgba))].astype(np.float32) / 255).permute(2, 0, 1)
    shown = picture[:3] * picture[3:] + base * (1 - picture[3:])
    left, top, side = int(rng.integers(0, 40)), int(rng.integers(0, 40)), int(rng.integers(8, 24))
    part = functional.interpolate(shown[None, :, top : top + side, left : left + side], size=SIZE, mode="bicubic")
    return part[0].clamp(0, 1)


def placed(rng: np.random.Generator, rgba: NDArray[np.uint8], least: float = 0.5) -> Tensor:
    """One subject somewhere, mirrored, turned a little, at `least` to 1.1 of its size: (4, 64, 64), colours × alpha."""
    picture = torch.from_numpy(rgba[rng.integers(len(rgba))].astype(np.float32) / 255).permute(2, 0, 1)
    picture = torch.cat([picture[:3] * picture[3:], picture[3:]])
    scale, turn = least + (1.1 - least) * float(rng.random()), 0.25 * float(rng.standard_normal())
    room = max(0.05, 1 - scale)
    x, y = (room * (2 * rng.random(2) - 1)).tolist()
    mirror = -1.0 if rng.random() < 0.5 else 1.0
    cos, sin = math.cos(turn) / scale, math.sin(turn) / scale
    matrix = torch.tensor([[[mirror * cos, -mirror * sin, 0.0], [sin, cos, 0.0]]])
    matrix[0, :, 2] = -matrix[0, :, :2] @ torch.tensor([x, y], dtype=torch.float32)
    grid = functional.affine_grid(matrix, [1, 4, SIZE, SIZE], align_corners=False)
    return functional.grid_sample(picture[None], grid, align_corners=False)[0]


def composites(rng: np.random.Generator, rgba: NDArray[np.uint8], size: int) -> tuple[Tensor, Tensor]:
    """Pictures (size, 3, 64, 64) in [0, 1] and their true masks (size, 64, 64), 0 or 1."""
    pictures, masks = torch.empty(size, 3, SIZE, SIZE), torch.zeros(size, SIZE, SIZE)
    for i in range(size):
        kind = rng.random()
        shown = plain(rng) if kind < 0.6 else gradient(rng) if kind < 0.72 else textured(rng, rgba)
        count = 0 if rng.random() < EMPTY else 2 if rng.random() < TWO else 1
        for _ in range(count):
            layer = placed(rng, rgba, 0.35 if count == 2 else 0.5)
            shown = layer[:3] + shown * (1 - layer[3:])
            masks[i] = torch.maximum(masks[i], (layer[3] > 0.5).float())
        pictures[i] = shown
    return pictures.clamp(0, 1), masks


@torch.no_grad()
def through(vae: TinyVAE, pictures: Tensor, noise: Tensor) -> Tensor:
    """As a model draws them: by way of latents, whose error is `noise`."""
    return vae.decode(vae.encode(pictures) + noise).clamp(0, 1)


def loss_of(logits: Tensor, masks: Tensor) -> Tensor:
    """Cross-entropy, and 1 − Dice of each picture that has a subject."""
    entropy = functional.binary_cross_entropy_with_logits(logits, masks)
    chance = logits.sigmoid()
    both, sums = (chance * masks).sum((1, 2)), chance.sum((1, 2)) + masks.sum((1, 2))
    has = masks.flatten(1).any(1)
    return entropy + (1 - (2 * both + 1) / (sums + 1))[has].mean()


def iou(chances: Tensor, masks: Tensor) -> Tensor:
    """(B,): of the masks above ½, both (B, H, W); 1 where both are empty."""
    seen, true = chances > 0.5, masks > 0.5
    union = (seen | true).sum((1, 2))
    return torch.where(union > 0, (seen & true).sum((1, 2)) / union.clamp_min(1), torch.ones(len(union)))


def train_segmenter(
    network: Any,
    rgba: NDArray[np.uint8],
    vae: TinyVAE,
    folder: Path,
    steps: int = 2000,
    batch: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    check: Callable[[Any], float] | None = None,
) -> Any:
    """The moving average of the weights of `network`, a SubjectSegmenter. A killed run goes on from `folder`."""
    network = network.to(memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    first = load_progress(folder / "segmenter", {"model": network, "average": average, "optimizer": optimizer})
    for step in range(first, steps):
        rng = np.random.default_rng((seed, 5, step))
        pictures, masks = composites(rng, rgba, batch)
        part = batch // 2 if step >= LAST * steps else batch // 8  # drawn by way of latents; a quarter is blurred
        error = torch.tensor(rng.standard_normal((part, vae.latents.channels, 8, 8), np.float32)) * 0.1
        pictures[:part] = through(vae, pictures[:part], error)
        pictures[part : part + batch // 4] = soften(pictures[part : part + batch // 4], rng)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = loss_of(network(pictures.contiguous(memory_format=torch.channels_last)), masks)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            decay = min(0.998, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            save_progress(
                folder / "segmenter", step + 1, {"model": network, "average": average, "optimizer": optimizer}
            )
            score = check(average) if check else math.nan
            logger.info("segmenter step %d loss %.4f held-out IoU %.3f", step + 1, float(loss.detach()), score)
    return average.eval()


def shipped_vae() -> TinyVAE:
    """tiny-unet's autoencoder, fp32."""
    vae = TinyVAE()
    file = Path(__file__).parent / "weights" / "tiny-vae.safetensors"
    vae.load_state_dict({name: tensor.float() for name, tensor in load_file(file).items()})
    return vae.eval().requires_grad_(False)


def main() -> None:
    # What is taught here ships with the room that uses it, for tinyworld is not in the installed pack.
    importlib.import_module("devtools.start").load_pack()
    subject: Any = importlib.import_module("likeness.segmentation.subject")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(".tinyworld"), help="artwork and what is half done")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=subject.WEIGHTS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    split = load_split()
    download_packs(arguments.folder / "packs")
    packs = load_packs(arguments.folder / "packs")
    names = [*split.pretrain_subjects, *split.held_out_subjects]
    arguments.folder.mkdir(exist_ok=True)
    drawn = draw_all(packs, names, arguments.folder / "segmenter.npz")
    learnt = np.stack([drawn[name, style] for name in split.pretrain_subjects for style in split.pretrain_styles])
    held = np.stack([drawn[name, style] for name in split.held_out_subjects[::3] for style in split.pretrain_styles])
    pictures, masks = composites(np.random.default_rng(1), held, 128)

    @torch.no_grad()
    def check(network: Any) -> float:
        return float(iou(network.probability(pictures), masks).mean())

    torch.manual_seed(0)
    start = subject.SubjectSegmenter()
    network = train_segmenter(start, learnt, shipped_vae(), arguments.folder, arguments.steps, check=check)
    arguments.out.parent.mkdir(exist_ok=True)
    halves = {name: tensor.to(torch.float16).contiguous() for name, tensor in network.state_dict().items()}
    save_file(halves, arguments.out)


if __name__ == "__main__":
    main()
