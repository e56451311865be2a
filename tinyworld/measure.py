"""The model card's figures: held-out PSNR, and how often a classifier of real pictures names what was asked for."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPTokenizer

from .classifier import PictureClassifier, accuracy, asked_subjects
from .dataset import caption, plain_batch, words
from .sample import Drawable, draw_pictures
from .split import STYLES, Split
from .train_vae import held_out_psnr
from .truth import Pictures
from .vae import TinyVAE


def measure(
    model: Drawable,
    vae: TinyVAE,
    pictures: Pictures,
    split: Split,
    tokenizer: CLIPTokenizer,
    judge: PictureClassifier,
) -> dict[str, float]:
    """Figure -> value: PSNR of held-out subjects by style, then shares named right of real, encoded and drawn ones."""
    held_out = np.stack([pictures[name, style] for name in split.held_out_subjects for style in STYLES])
    scores = held_out_psnr(vae, held_out).view(-1, len(STYLES)).mean(0)
    figures = {f"held-out PSNR, {style} (dB)": float(score) for style, score in zip(STYLES, scores, strict=True)}
    figures["held-out PSNR, all styles (dB)"] = float(scores.mean())
    asked = asked_subjects(split)
    pairs = [(i, j) for i in range(len(asked)) for j in range(len(split.pretrain_styles))]
    subjects, styles = torch.tensor(pairs).unbind(1)
    real = plain_batch(np.stack([pictures[asked[i], split.pretrain_styles[j]] for i, j in pairs]))
    with torch.no_grad():
        through_vae = vae.from_model_latents(vae.model_latents(real))
    prompts = [caption(words(asked[i]), split.pretrain_styles[j], None) for i, j in pairs]
    for name, shown in {
        "real": real,
        "real through the VAE": through_vae,
        "drawn": draw_pictures(model, vae, tokenizer, prompts),
    }.items():
        figures[f"subject named right, {name}"], figures[f"style named right, {name}"] = accuracy(
            judge, shown, subjects, styles
        )
    return figures


def sheet(model: Drawable, vae: TinyVAE, split: Split, tokenizer: CLIPTokenizer) -> Image.Image:
    """Samples of every sixth asked subject, one a row, in each pretraining style."""
    styles = split.pretrain_styles
    prompts = [caption(words(name), style, None) for name in asked_subjects(split)[::6] for style in styles]
    drawn = draw_pictures(model, vae, tokenizer, prompts)
    rows = [torch.cat(list(part), 2) for part in torch.split(drawn, len(styles))]
    pixels: Tensor = torch.cat(rows, 1).permute(1, 2, 0).mul(255).round().byte()
    return Image.fromarray(pixels.numpy())
