"""Aesthetic score: how much people liked pictures like this one, about 1 to 10; higher is better.

LAION's improved aesthetic predictor (Schuhmann 2022; Apache-2.0): a head 768 → 1024 → 128 → 64 → 16 → 1 without
activations, that is a linear function, on L2-normalised image embeddings of OpenAI's CLIP ViT-L/14. It was trained on
ratings of photographs, art and generated pictures, and prefers paintings and smooth portraits: compare like with like.
The file (``sac+logos+ava1-l14-linearMSE.pth``) is the user's.
"""

from __future__ import annotations

import itertools
import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

FILE = "sac+logos+ava1-l14-linearMSE.pth"
WIDTHS = (768, 1024, 128, 64, 16, 1)
_NUMBERS = (0, 2, 4, 6, 7)  # of the layers in the file; what is between is dropout


class AestheticHead(nn.Module):
    """(N, width) -> (N,). Names are those of the published file. ImageReward's head is built alike."""

    def __init__(self, width: int = WIDTHS[0]) -> None:
        super().__init__()
        places = dict(zip(_NUMBERS, itertools.pairwise((width, *WIDTHS[1:])), strict=True))
        self.layers = nn.Sequential(
            *(nn.Linear(*places[number]) if number in places else nn.Identity() for number in range(_NUMBERS[-1] + 1))
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        scores: Tensor = self.layers(embeddings).squeeze(-1)
        return scores


@torch.no_grad()
def aesthetic_scores(embeddings: Tensor, head: AestheticHead) -> Tensor:
    """CLIP ViT-L/14 image embeddings (N, 768), of any length -> (N,) float32 on the CPU.

    Raises:
        ValueError: another width (another CLIP), or an embedding without a direction.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != WIDTHS[0] or len(embeddings) == 0:
        raise ValueError(
            f"the aesthetic predictor needs image embeddings (pictures, {WIDTHS[0]}) of CLIP ViT-L/14, got "
            f"{tuple(embeddings.shape)}: load that model (B/32 has 512, H/14 has 1024)"
        )
    weight = next(head.parameters())
    embeddings = embeddings.to(weight.device, torch.float32)
    lengths = embeddings.norm(dim=1, keepdim=True)
    if not (lengths > 0).all() or lengths.isinf().any():
        raise ValueError("an image embedding is zero, NaN or infinite: it has no direction to judge")
    scores: Tensor = head((embeddings / lengths).to(weight.dtype))
    return scores.float().cpu()


def mean_aesthetic(embeddings: Tensor, head: AestheticHead) -> float:
    """Mean of :func:`aesthetic_scores`."""
    return float(aesthetic_scores(embeddings, head).mean())


def load_aesthetic(path: Path) -> AestheticHead:
    """The head of the published file, or of a safetensors file with the same names.

    Raises:
        ValueError: it is another head, e.g. the older linear one or version 2.5, or no file of tensors.
    """
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        head = AestheticHead()
        head.load_state_dict(state)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, TypeError, AttributeError) as why:
        raise ValueError(
            f"{path} is not LAION's improved aesthetic predictor ({' '.join(str(why).split())[:120]}); expected {FILE} "
            "of christophschuhmann/improved-aesthetic-predictor"
        ) from why
    return head.eval().requires_grad_(False)
