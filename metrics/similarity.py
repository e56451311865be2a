"""Subject similarity: how much generated pictures look like the reference pictures of a subject.

DreamBooth's subject fidelity (Ruiz et al. 2023, arXiv 2208.12242, section 4.1): the average cosine between the
features of every generated and every reference picture. With DINO or CLIP features it is their DINO or CLIP-I score.
Figures from different feature networks must not be compared with each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .features import Features


@dataclass(frozen=True)
class SubjectSimilarity:
    """Cosines of generated (rows) to reference pictures (columns): (N, M), each in [−1, 1], 1 = same features.

    Networks whose features are never negative (those that end in a ReLU) stay in [0, 1].
    """

    cosines: Tensor

    @property
    def per_picture(self) -> Tensor:
        """Mean cosine of each generated picture to all references, (N,) in [−1, 1]; higher is more alike."""
        return self.cosines.mean(dim=1)

    @property
    def mean(self) -> float:
        """Mean over all pairs: DreamBooth's figure, in [−1, 1]; higher is more alike."""
        return float(self.cosines.mean())

    @property
    def nearest_per_picture(self) -> Tensor:
        """Cosine of each generated picture to the reference nearest to it, (N,) in [−1, 1]; at least `per_picture`.

        Near 1 throughout, while `mean` is not, says that a reference was copied.
        """
        return self.cosines.amax(dim=1)

    @property
    def nearest(self) -> float:
        """Mean of `nearest_per_picture`, in [−1, 1]; higher is more alike, or more copied."""
        return float(self.nearest_per_picture.mean())


def cosine_similarities(generated: Tensor, references: Tensor) -> SubjectSimilarity:
    """Compare feature vectors (N, D) with (M, D), of any length but 0; float32 or better.

    Raises ValueError where a set is empty, the widths differ, or a vector has no direction (zero, NaN, infinite).
    """
    for name, vectors in (("generated", generated), ("reference", references)):
        if vectors.ndim != 2 or 0 in vectors.shape:
            raise ValueError(f"{name} features must be (pictures, D) with at least one, got {tuple(vectors.shape)}")
    if generated.shape[1] != references.shape[1]:
        raise ValueError(
            f"generated features have {generated.shape[1]} numbers, reference features {references.shape[1]}: "
            "take both from the same network"
        )
    return SubjectSimilarity((_unit(generated, "generated") @ _unit(references, "reference").T).clamp(-1, 1))


def _unit(vectors: Tensor, name: str) -> Tensor:
    vectors = vectors if vectors.dtype == torch.float64 else vectors.float()
    lengths = vectors.norm(dim=1, keepdim=True)
    bad = (~(lengths > 0) | lengths.isinf()).flatten().nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"{name} features of picture {bad[0]} are zero, NaN or infinite: no cosine; leave it out")
    unit: Tensor = vectors / lengths
    return unit


def compare(generated: Tensor, references: Tensor, features: Features) -> SubjectSimilarity:
    """Pictures (N, 3, H, W) and (M, 3, H', W') in [0, 1], both through `features` -> their `SubjectSimilarity`.

    Raises ValueError for pictures of another shape, dtype or range, and for an empty set.
    """
    return cosine_similarities(features(generated), features(references))


def subject_similarity(generated: Tensor, references: Tensor, features: Features) -> float:
    """Mean cosine over all pairs of generated (N, 3, H, W) and reference (M, 3, H', W') pictures; [−1, 1], higher."""
    return compare(generated, references, features).mean


def nearest_similarity(generated: Tensor, references: Tensor, features: Features) -> float:
    """Mean over generated pictures of the cosine to the nearest reference; [−1, 1], higher."""
    return compare(generated, references, features).nearest
