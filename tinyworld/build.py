"""Make tinyworld from nothing: `python -m tinyworld.build --tokenizer <host>/comfy/sd1_tokenizer`.

Fetches the artwork (npm), draws it, trains a VAE, a text encoder and a model, measures them, and writes what ships.
Each stage leaves its file in `.tinyworld/`, so that a killed build goes on where it stood. Needs resvg_py and the
host's packages. `--model tiny-mmdit` makes the second model, whose VAE starts from the first one's, with the same text
encoder and the same judge.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

from .assemble import MODELS, TEXT, WEIGHTS
from .classifier import JUDGE, asked_subjects, load_judge, train_classifier
from .measure import measure, sheet
from .packing import pack
from .pictures import download_packs, draw_all, load_packs, subjects_with_class
from .pretraining import Latents, Schedule, caption_vocabulary, encode_all
from .split import RECORD, STYLES, Split, load_split, make_split, save_split
from .text_encoder import TextEncoder, encoder_tensors, load_encoder
from .train_mmdit import PretrainedFlow, train_mmdit
from .train_text import train_text
from .train_unet import Pretrained, train_unet
from .train_vae import train_vae
from .truth import Pictures, shipped, write_archive
from .vae import SD3, TinyVAE, widened

logger = logging.getLogger(__name__)
DOCS = Path(__file__).parent.parent / "docs"


def ship(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Write a file of the weights folder."""
    WEIGHTS.mkdir(exist_ok=True)
    title = name.removesuffix(".safetensors")
    save_file(dict(tensors), WEIGHTS / name, {"modelspec.title": title, "modelspec.license": "CC-BY-SA-4.0"})


def export(model: str, weights: Mapping[str, Tensor], vae: TinyVAE) -> None:
    """What ships of a model: itself in int8, and its VAE in fp16 with fp32 scale and shift."""
    ship(f"{model}.safetensors", pack({name: t.detach().cpu() for name, t in weights.items()}))
    parts = {name: t.detach().cpu().contiguous() for name, t in vae.state_dict().items()}
    ship(MODELS[model][0], {name: t if t.ndim == 0 else t.to(torch.float16) for name, t in parts.items()})


def load_pictures(work: Path) -> tuple[Split, Pictures]:
    """The split and every picture, drawn once."""
    download_packs(work / "packs")
    packs = load_packs(work / "packs")
    if not RECORD.exists():
        save_split(make_split(subjects_with_class(work / "packs", packs)))
    split = load_split()
    return split, draw_all(packs, sorted(split.class_of), work / "pictures.npz")


def load_vae(vae: TinyVAE, split: Split, pictures: Pictures, folder: Path, steps: int, device: str) -> TinyVAE:
    """The autoencoder, trained from where `vae` is; once."""
    done = folder / "vae_final.pt"
    if not done.exists():
        seen = [*split.pretrain_subjects, *split.other_subjects]
        rgba = np.stack([pictures[name, style] for name in seen for style in split.pretrain_styles])
        held_out = np.stack([pictures[name, style] for name in split.held_out_subjects for style in STYLES])
        trained = train_vae(rgba, held_out, folder, steps=steps, device=device, start=vae).cpu()
        torch.save(trained.state_dict(), done)
    vae.cpu().load_state_dict(torch.load(done, weights_only=True))
    return vae


def load_text(latents: Latents, split: Split, tokenizer: CLIPTokenizer, folder: Path, device: str) -> TextEncoder:
    """The text encoder, trained once."""
    done = folder / "text_final.pt"
    if not done.exists():
        torch.save(train_text(latents, split, tokenizer, folder, device=device).cpu().state_dict(), done)
    encoder = TextEncoder(caption_vocabulary(tokenizer, split))
    encoder.load_state_dict(torch.load(done, weights_only=True))
    return encoder


def build(
    model: str, work: Path, tokenizer_folder: Path, vae_steps: int, steps: int, batch: int, device: str
) -> dict[str, float]:
    """All stages in order; figures go to the model's figures.json and a sheet of samples to docs/."""
    torch.set_flush_denormal(True)
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    split, pictures = load_pictures(work)
    pairs = tuple((name, style) for name in split.pretrain_subjects for style in split.pretrain_styles)
    trained: Pretrained | PretrainedFlow
    if model == "tiny-unet":
        folder, picture = work, DOCS / "tinyworld.png"
        write_archive({pair: pictures[pair] for pair in shipped(split)})
        torch.manual_seed(0)
        vae = load_vae(TinyVAE(), split, pictures, folder, vae_steps, device)
        latents = encode_all(vae, pictures, pairs, folder / "latents.pt")
        ship(TEXT, encoder_tensors(load_text(latents, split, tokenizer, folder, device)))
        text = load_encoder(load_file(WEIGHTS / TEXT))  # as it ships
        trained = train_unet(text, latents, split, tokenizer, folder, steps=steps, batch=batch, device=device).cpu()
        export(model, trained.unet.state_dict(), vae)
        judge = train_classifier(pictures, asked_subjects(split), split.pretrain_styles)
        save_file(judge.state_dict(), JUDGE, {"modelspec.title": "judge of tiny-unet"})
    else:
        folder, picture = work / "mmdit", DOCS / "tinyworld-mmdit.png"
        torch.manual_seed(0)
        four = TinyVAE()
        four.load_state_dict({n: t.float() for n, t in load_file(WEIGHTS / MODELS["tiny-unet"][0]).items()})
        vae = load_vae(widened(four, SD3), split, pictures, folder, vae_steps, device)
        latents = encode_all(vae, pictures, pairs, folder / "latents.pt")
        plan = Schedule(steps, batch, LEARNING_RATE, device=device)
        text = load_encoder(load_file(WEIGHTS / TEXT))
        trained = train_mmdit(text, latents, split, tokenizer, folder, plan).cpu()
        export(model, trained.mmdit.state_dict(), vae)
        judge = load_judge(split)
    figures = measure(trained, vae, pictures, split, tokenizer, judge)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        logger.info("%s: %.3f", name, value)
    sheet(trained, vae, split, tokenizer).save(picture)
    return figures


LEARNING_RATE = 8e-4
STEPS = {"tiny-unet": (2500, 9000, 16), "tiny-mmdit": (1000, 3000, 64)}  # the VAE's, the model's, the model's batch

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="tiny-unet")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with CLIP-L's vocab.json and merges.txt")
    parser.add_argument("--work", type=Path, default=Path(__file__).parent.parent / ".tinyworld")
    parser.add_argument("--vae-steps", type=int, help="default: 2500, or 1000 for tiny-mmdit")
    parser.add_argument("--steps", "--unet-steps", type=int, help="default: 9000, or 3000 for tiny-mmdit")
    parser.add_argument("--batch", type=int, help="default: 16, or 64 for tiny-mmdit")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    vae_steps, steps, batch = STEPS[options.model]
    build(
        options.model,
        options.work,
        options.tokenizer,
        options.vae_steps or vae_steps,
        options.steps or steps,
        options.batch or batch,
        options.device,
    )
