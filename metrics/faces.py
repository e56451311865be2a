"""Face distance: how far generated faces are from the references' in FaceNet's space.

Schroff et al. 2015, arXiv 1503.03832: unit vectors in which faces of one person are near. As in a published study of
personalised FLUX models, which states two figures: its text has the distance between the two sets' means, its
Algorithm 1 the mean of ‖f̄ − f_x‖ over generated faces, f̄ the references' mean. Both are here. The second is never below
the first (a norm is convex) and also falls when the generated faces are like each other.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .face_detection import PACKAGE, Face

SIDE = 160
FaceEmbedder = Callable[[Tensor], Tensor]
"""(B, 3, side, side) -> (B, D), scaled as its network wants; rows need not have length 1."""


@dataclass(frozen=True)
class FaceDistances:
    """Distances in [0, 2]; lower is nearer; 0: the same embedding. None where a set has no face at all.

    Attributes:
        per_picture: ‖f̄ − f_x‖ of each generated picture; None without a face.
        mean_of_distances: their mean over pictures with a face (Algorithm 1).
        between_means: ‖f̄ − mean f_x‖ (the text).
        faceless, faceless_references: how many pictures had no face. They are left out of the means, and never 0 or 2.
    """

    per_picture: tuple[float | None, ...]
    mean_of_distances: float | None
    between_means: float | None
    faceless: int
    faceless_references: int


def face_distances(generated: Sequence[Tensor | None], references: Sequence[Tensor | None]) -> FaceDistances:
    """Distances of embeddings (D,), None where a picture has no face.

    Raises:
        ValueError: no pictures at all, or an embedding without a direction.
    """
    if not generated or not references:
        raise ValueError(
            f"there are {len(generated)} generated and {len(references)} reference pictures; expected some"
        )
    made = [None if face is None else _unit(face) for face in generated]
    known = [_unit(face) for face in references if face is not None]
    faces = [face for face in made if face is not None]
    about = len(made) - len(faces), len(references) - len(known)
    if not faces or not known:
        return FaceDistances((None,) * len(made), None, None, *about)
    centre = torch.stack(known).mean(dim=0)
    each = tuple(None if face is None else float((centre - face).norm()) for face in made)
    distances = [distance for distance in each if distance is not None]
    between = float((centre - torch.stack(faces).mean(dim=0)).norm())
    return FaceDistances(each, sum(distances) / len(distances), between, *about)


def face_distance(generated: Sequence[Tensor | None], references: Sequence[Tensor | None]) -> float:
    """Algorithm 1's mean of distances; NaN where a set has no face."""
    found = face_distances(generated, references).mean_of_distances
    return float("nan") if found is None else found


def face_distance_of_means(generated: Sequence[Tensor | None], references: Sequence[Tensor | None]) -> float:
    """The distance between the sets' means; NaN where a set has no face."""
    found = face_distances(generated, references).between_means
    return float("nan") if found is None else found


def faceless_share(faces: Sequence[object | None]) -> float:
    """Share of the pictures that have no face, in [0, 1]. Raises ValueError where there are no pictures."""
    if not faces:
        raise ValueError("there are no pictures to count faces in")
    return sum(face is None for face in faces) / len(faces)


def facenet_crop(face: Face) -> Tensor:
    """The box, stretched to 160 × 160, scaled as (x − 127.5) / 128: (3, 160, 160)."""
    left, top, right, bottom = face.box
    width, height = face.picture.size
    box = (int(max(left, 0)), int(max(top, 0)), int(min(right, width)), int(min(bottom, height)))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"the face's box {face.box} lies outside of its picture of {width} × {height}")
    small = face.picture.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3)
    return (pixels.permute(2, 0, 1).float() - 127.5) / 128


@torch.no_grad()
def embed_faces(
    faces: Sequence[Face | None],
    crop: Callable[[Face], Tensor],
    embedder: FaceEmbedder,
    batch: int = 16,
) -> list[Tensor | None]:
    """Each face through `crop` and `embedder`, in batches: (D,) float64 on the CPU, None where there is none."""
    there = [(place, face) for place, face in enumerate(faces) if face is not None]
    found: list[Tensor | None] = [None] * len(faces)
    for first in range(0, len(there), batch):
        part = there[first : first + batch]
        rows = embedder(torch.stack([crop(face) for _, face in part])).to("cpu", torch.float64)
        for (place, _), row in zip(part, rows, strict=True):
            found[place] = row
    return found


def load_facenet(path: Path) -> Any:
    """InceptionResnetV1 with the weights of a file such as ``20180402-114759-vggface2.pt``, on the CPU.

    Raises:
        ValueError: the package is missing, or the file holds anything but this network's tensors.
    """
    try:
        from facenet_pytorch import InceptionResnetV1
    except ImportError as why:
        raise ValueError(f"FaceNet's network is in facenet-pytorch: run `pip install --no-deps {PACKAGE}`") from why
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network = InceptionResnetV1(pretrained=None, classify=False)
        network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("logits.")})
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as why:
        raise ValueError(
            f"{path} is no InceptionResnetV1 of facenet-pytorch ({str(why)[:120]}); its release v2.2.9 has "
            "20180402-114759-vggface2.pt"
        ) from why
    return network.eval().requires_grad_(False)


def _unit(embedding: Tensor) -> Tensor:
    embedding = embedding.to(torch.float64)
    length = embedding.norm()
    if embedding.ndim != 1 or not (length > 0) or length.isinf():
        raise ValueError(f"a face's embedding is {tuple(embedding.shape)} of length {float(length):.3g}; expected (D,)")
    unit: Tensor = embedding / length
    return unit
