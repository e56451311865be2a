"""Does tiny-unet follow its prompts? A small classifier, trained on the real pictures alone, names what it drew."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .assemble import WEIGHTS
from .dataset import BACKGROUNDS, WHITE, composite_batch
from .split import Split

SUBJECTS_ASKED = 50
JUDGE = WEIGHTS / "judge.safetensors"


def asked_subjects(split: Split, seed: int = 0) -> list[str]:
    """The 50 pretraining subjects of the prompt-following figure: drawn by seed, not picked by hand."""
    return sorted(random.Random(seed).sample(split.pretrain_subjects, SUBJECTS_ASKED))


class PictureClassifier(nn.Module):
    """(B, 3, 64, 64) in [0, 1] -> logits of the subject (B, subjects) and of the style (B, styles). 0.4M parameters."""

    def __init__(self, subjects: int, styles: int, width: int = 32) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 3
        for outside in (width, 2 * width, 4 * width, 4 * width):
            layers += [nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            inside = outside
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3))
        self.subject = nn.Linear(inside * 16, subjects)
        self.style = nn.Linear(inside * 16, styles)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        features = self.trunk(pictures * 2 - 1)
        return self.subject(features), self.style(features)


def load_judge(split: Split, path: Path = JUDGE) -> PictureClassifier:
    """The shipped judge: `asked_subjects` × pretraining styles, trained by `build` on real pictures alone."""
    model = PictureClassifier(SUBJECTS_ASKED, len(split.pretrain_styles))
    model.load_state_dict(load_file(path))
    return model.eval()


def soften(pictures: Tensor, rng: np.random.Generator) -> Tensor:
    """Blur by a random amount, jitter contrast, add noise: what an autoencoder of 64 pixels does to a picture."""
    size = int(rng.integers(20, 65))
    small = functional.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True)
    soft = functional.interpolate(small, size=(64, 64), mode="bicubic")
    noise = torch.from_numpy(rng.standard_normal(soft.shape, np.float32)) * float(rng.random()) * 0.06
    return (soft * (0.9 + 0.2 * float(rng.random())) + noise).clamp(0, 1)


def train_classifier(
    pictures: dict[tuple[str, str], NDArray[np.uint8]],
    subjects: Sequence[str],
    styles: Sequence[str],
    steps: int = 900,
    batch: int = 48,
    seed: int = 0,
) -> PictureClassifier:
    """Trained on real pictures only, moved, softened and on any background; a few minutes on two cores."""
    torch.manual_seed(seed)
    pairs = [(i, j) for i in range(len(subjects)) for j in range(len(styles))]
    rgba = np.stack([pictures[subjects[i], styles[j]] for i, j in pairs])
    labels = torch.tensor(pairs)
    colours = [WHITE, *BACKGROUNDS.values()]
    model = PictureClassifier(len(subjects), len(styles))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        rng = np.random.default_rng((seed, 3, step))
        picked = rng.integers(len(pairs), size=batch)
        backgrounds = [colours[0] if rng.random() < 0.6 else colours[rng.integers(len(colours))] for _ in picked]
        real = composite_batch(rgba[picked], backgrounds, [False] * batch, rng.integers(-3, 4, size=(batch, 2)))
        subject, style = model(soften(real, rng))
        loss = functional.cross_entropy(subject, labels[picked, 0], label_smoothing=0.05) + functional.cross_entropy(
            style, labels[picked, 1], label_smoothing=0.05
        )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: PictureClassifier, pictures: Tensor, subjects: Tensor, styles: Tensor) -> tuple[float, float]:
    """Shares of pictures (B, 3, 64, 64) whose subject, and whose style, is named right; indices (B,), (B,)."""
    subject, style = model(pictures)
    return (
        float((subject.argmax(1) == subjects).float().mean()),
        float((style.argmax(1) == styles).float().mean()),
    )
