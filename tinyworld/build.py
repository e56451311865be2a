"""Make tinyworld from nothing: `python -m tinyworld.build --tokenizer <host>/comfy/sd1_tokenizer`.

Fetches the artwork (npm), draws it, trains the VAE and tiny-unet, measures both, and writes what ships. Each stage
leaves its file in `.tinyworld/`, so that a killed build goes on where it stood. Needs resvg_py and the host's packages.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTokenizer

from .classifier import JUDGE, accuracy, asked_subjects, train_classifier
from .dataset import caption, plain_batch, words
from .packing import pack
from .pictures import download_packs, draw_all, load_packs, subjects_with_class
from .sample import draw_pictures
from .split import RECORD, STYLES, Split, load_split, make_split, save_split
from .train_unet import Pretrained, encode_all, train_unet
from .train_vae import held_out_psnr, train_vae
from .truth import Pictures, write_archive
from .vae import TinyVAE

logger = logging.getLogger(__name__)
ROOT = Path(__file__).parent


def export(model: Pretrained, vae: TinyVAE, weights: Path) -> None:
    """What ships: int8 UNet with the trained word rows in fp16, fp16 VAE with fp32 scale and shift."""
    weights.mkdir(exist_ok=True)
    unet = pack({name: t.detach().cpu() for name, t in model.unet.state_dict().items()})
    unet["token_ids"] = torch.tensor(model.words.ids, dtype=torch.int32)
    unet["token_rows"] = model.words.rows.detach().to("cpu", torch.float16)
    save_file(
        unet, weights / "tiny-unet.safetensors", {"modelspec.title": "tiny-unet", "modelspec.license": "CC-BY-SA-4.0"}
    )
    parts = {name: t.detach().cpu().contiguous() for name, t in vae.state_dict().items()}
    halved = {name: t if t.ndim == 0 else t.to(torch.float16) for name, t in parts.items()}
    save_file(
        halved, weights / "tiny-vae.safetensors", {"modelspec.title": "tiny-vae", "modelspec.license": "CC-BY-SA-4.0"}
    )


def measure(
    model: Pretrained, vae: TinyVAE, pictures: Pictures, split: Split, tokenizer: CLIPTokenizer
) -> dict[str, float]:
    """The model card's figures: held-out PSNR, and how often a classifier of real pictures names what was asked for."""
    held_out = np.stack([pictures[name, style] for name in split.held_out_subjects for style in STYLES])
    scores = held_out_psnr(vae, held_out).view(-1, len(STYLES)).mean(0)
    figures = {f"held-out PSNR, {style} (dB)": float(score) for style, score in zip(STYLES, scores, strict=True)}
    figures["held-out PSNR, all styles (dB)"] = float(scores.mean())
    asked = asked_subjects(split)
    judge = train_classifier(pictures, asked, split.pretrain_styles)
    save_file(judge.state_dict(), JUDGE, {"modelspec.title": "judge of tiny-unet"})
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


def sheet(drawn: Tensor, columns: int) -> Image.Image:
    """(B, 3, H, W) in [0, 1] -> one picture, `columns` a row."""
    rows = [torch.cat(list(part), 2) for part in torch.split(drawn, columns)]
    pixels = torch.cat(rows, 1).permute(1, 2, 0).mul(255).round().byte().numpy()
    return Image.fromarray(pixels)


def build(work: Path, tokenizer_folder: Path, vae_steps: int, unet_steps: int, batch: int, device: str) -> None:
    """All stages in order; figures go to `work`/figures.json and a sheet of samples to docs/tinyworld.png."""
    torch.set_flush_denormal(True)
    tokenizer = CLIPTokenizer.from_pretrained(str(tokenizer_folder))
    download_packs(work / "packs")
    packs = load_packs(work / "packs")
    if not RECORD.exists():
        save_split(make_split(subjects_with_class(work / "packs", packs)))
    split = load_split()
    pictures = draw_all(packs, sorted(split.class_of), work / "pictures.npz")
    shipped = [(name, style) for name in split.held_out_subjects for style in STYLES]
    shipped += [(name, style) for name in split.pretrain_subjects for style in split.held_out_styles]
    write_archive({pair: pictures[pair] for pair in shipped})

    seen = [*split.pretrain_subjects, *split.other_subjects]
    rgba = np.stack([pictures[name, style] for name in seen for style in split.pretrain_styles])
    held_out = np.stack([pictures[name, style] for name in split.held_out_subjects for style in STYLES])
    done = work / "vae_final.pt"
    vae = TinyVAE()
    if not done.exists():
        vae = train_vae(rgba, held_out, work, steps=vae_steps, device=device).cpu()
        torch.save(vae.state_dict(), done)
    vae.load_state_dict(torch.load(done, weights_only=True))

    pairs = tuple((name, style) for name in split.pretrain_subjects for style in split.pretrain_styles)
    latents = encode_all(vae, pictures, pairs, work / "latents.pt")
    model = train_unet(latents, split, tokenizer, work, steps=unet_steps, batch=batch, device=device).cpu()
    export(model, vae, ROOT / "weights")
    figures = measure(model, vae, pictures, split, tokenizer)
    (work / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        logger.info("%s: %.3f", name, value)
    shown = [
        caption(words(name), style, None) for name in asked_subjects(split)[::6] for style in split.pretrain_styles
    ]
    sheet(draw_pictures(model, vae, tokenizer, shown), 6).save(ROOT.parent / "docs" / "tinyworld.png")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with CLIP-L's vocab.json and merges.txt")
    parser.add_argument("--work", type=Path, default=ROOT.parent / ".tinyworld")
    parser.add_argument("--vae-steps", type=int, default=2500)
    parser.add_argument("--unet-steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    build(options.work, options.tokenizer, options.vae_steps, options.unet_steps, options.batch, options.device)
