"""CLIP-T: how well a picture shows what its prompt says, by the cosine of CLIP's embeddings of both.

The plain cosine, as DreamBooth (arXiv 2208.12242) and DreamBench++ print it; or CLIPScore, 2.5 · max(cos, 0), of
Hessel et al. 2021 (arXiv 2104.08718, equation 1). Never CLIP's logit scale. Cosines of ViT-B/32 and of L/14 differ:
they are not to be pooled.
"""

from __future__ import annotations

import re
from typing import Literal

from torch import Tensor

from .similarity import cosine_similarities

SCALE = 2.5
Pairing = Literal["matched", "all pairs"]
PAIRINGS: tuple[Pairing, ...] = ("matched", "all pairs")


def prompt_cosines(pictures: Tensor, prompts: Tensor, pairing: Pairing = "matched") -> Tensor:
    """Embeddings of pictures (N, D) and prompts -> (N,) cosines in [−1, 1]; higher is better.

    Args:
        pictures, prompts: of any length but 0.
        pairing: ``matched``: picture i with prompt i; prompts are (N, D), or (1, D) for all. ``all pairs``: each
            picture with every prompt (M, D), averaged, mismatched pairs included, as Algorithm 2 of a published study
            of personalised FLUX models has it. It rewards pictures that show a little of everything.

    Raises:
        ValueError: numbers or widths that do not fit, or an embedding without direction.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"the pairing {pairing!r} is unknown; expected one of: {', '.join(PAIRINGS)}")
    if pairing == "matched" and len(prompts) not in (1, len(pictures)):
        raise ValueError(
            f"there are {len(pictures)} pictures and {len(prompts)} prompts; expected a prompt for each picture, in "
            "their order, or one for all"
        )
    cosines = cosine_similarities(pictures, prompts).cosines
    if pairing == "all pairs" or len(prompts) == 1:
        return cosines.mean(dim=1)
    return cosines.diagonal()


def clip_score_of(cosines: Tensor) -> Tensor:
    """CLIPScore, 2.5 · max(cos, 0), in [0, 2.5]."""
    return SCALE * cosines.clamp_min(0)


def clip_t(pictures: Tensor, prompts: Tensor) -> float:
    """Mean cosine of matched pairs, of embeddings (N, D) and (N, D)."""
    return float(prompt_cosines(pictures, prompts).mean())


def clip_t_all_pairs(pictures: Tensor, prompts: Tensor) -> float:
    """Mean cosine of all pairs, of embeddings (N, D) and (M, D)."""
    return float(prompt_cosines(pictures, prompts, "all pairs").mean())


def clip_score(pictures: Tensor, prompts: Tensor) -> float:
    """Mean CLIPScore of matched pairs, of embeddings (N, D) and (N, D)."""
    return float(clip_score_of(prompt_cosines(pictures, prompts)).mean())


def class_prompt(prompt: str, token: str, noun: str) -> str:
    """The prompt as CLIP can read it: the class noun in the place of a word that was taught.

    ``a sks dog`` with token ``sks`` and noun ``dog`` becomes ``a dog``: a noun that follows the token is not doubled.
    Only whole words are replaced; capitals do not matter. Without a token the prompt stays.

    Raises:
        ValueError: there is a token, but no noun.
    """
    token, noun = token.strip(), noun.strip()
    if not token:
        return prompt
    if not noun:
        raise ValueError(f"{token!r} is to be replaced, but there is no class noun: CLIP does not know the word")
    pattern = rf"(?<!\w){re.escape(token)}(?!\w)(\s+{re.escape(noun)}(?!\w))?"
    return re.sub(pattern, lambda _: noun, prompt, flags=re.IGNORECASE)
