"""Face similarity: cosine of embeddings of aligned faces, as ArcFace has it (Deng et al. 2019, arXiv 1801.07698).

A face is turned and scaled so that its eyes, nose and mouth lie where ArcFace's 112 × 112 template has them, then goes
through any embedder: a user's own ONNX file, say. Published models of that kind are mostly non-commercial; the pack has
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .face_detection import Face
from .similarity import cosine_similarities

SIDE = 112
_TEMPLATE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]],
    dtype=torch.float64,
)


@dataclass(frozen=True)
class FaceSimilarity:
    """Cosines in [−1, 1]; higher is more alike.

    Attributes:
        per_picture: mean cosine of each generated face to all references' faces; None without a face.
        mean: over the pictures that have one; None where a set has no face.
        faceless, faceless_references: how many pictures had no face.
    """

    per_picture: tuple[float | None, ...]
    mean: float | None
    faceless: int
    faceless_references: int


def face_similarity(generated: Sequence[Tensor | None], references: Sequence[Tensor | None]) -> FaceSimilarity:
    """Cosines of embeddings (D,), None where a picture has no face.

    Raises:
        ValueError: no pictures at all, or an embedding without a direction.
    """
    if not generated or not references:
        raise ValueError(
            f"there are {len(generated)} generated and {len(references)} reference pictures; expected some"
        )
    made = [face for face in generated if face is not None]
    known = [face for face in references if face is not None]
    about = len(generated) - len(made), len(references) - len(known)
    if not made or not known:
        return FaceSimilarity((None,) * len(generated), None, *about)
    cosines = cosine_similarities(torch.stack(made), torch.stack(known))
    each = iter(cosines.per_picture.tolist())
    return FaceSimilarity(tuple(None if face is None else next(each) for face in generated), cosines.mean, *about)


def mean_face_similarity(generated: Sequence[Tensor | None], references: Sequence[Tensor | None]) -> float:
    """The mean cosine over all pairs of faces; NaN where a set has none."""
    found = face_similarity(generated, references).mean
    return float("nan") if found is None else found


def similarity_transform(source: Tensor, target: Tensor) -> Tensor:
    """Rotation, scale and shift that brings points (N, 2) nearest to others, least squares: (2, 3), x' = A x + b.

    Umeyama 1991, IEEE TPAMI 13, 4, equations 40 to 43.
    """
    source, target = source.to(torch.float64), target.to(torch.float64)
    middle, wanted = source.mean(dim=0), target.mean(dim=0)
    apart = source - middle
    left, sizes, right = torch.linalg.svd((target - wanted).T @ apart / len(source))
    signs = torch.ones(2, dtype=torch.float64)
    if torch.linalg.det(left) * torch.linalg.det(right) < 0:  # a mirror image is no rotation
        signs[1] = -1
    variance = apart.square().sum() / len(source)
    if not variance > 0:
        raise ValueError("the face's points coincide: no direction to turn it by")
    turn = (sizes * signs).sum() / variance * (left @ torch.diag(signs) @ right)
    return torch.cat([turn, (wanted - turn @ middle)[:, None]], dim=1)


def arcface_crop(face: Face) -> Tensor:
    """The face at the template's place, scaled as (x − 127.5) / 127.5: (3, 112, 112), RGB."""
    forth = similarity_transform(face.points, _TEMPLATE)
    back = torch.linalg.inv(torch.cat([forth, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)]))[:2]
    middle = torch.full((2,), 0.5, dtype=torch.float64)  # Pillow counts from a pixel's corner, points from its middle
    shift = back[:, :2] @ -middle + back[:, 2] + middle
    numbers = torch.cat([back[:, :2], shift[:, None]], dim=1).flatten().tolist()
    small = face.picture.transform((SIDE, SIDE), Image.Transform.AFFINE, numbers, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float()
    return (pixels - 127.5) / 127.5


class OnnxEmbedder:
    """A face network in ONNX: (B, 3, 112, 112) -> (B, D), run by onnxruntime on the CPU.

    Raises:
        ValueError: onnxruntime is missing, or the file is no such network.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as why:
            raise ValueError(f"{path.name} needs onnxruntime: run `pip install onnxruntime`") from why
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as why:  # its errors have no common class but this
            raise ValueError(f"{path} cannot be read as ONNX ({str(why)[:120]})") from why
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or list(inputs[0].shape)[1:] != [3, SIDE, SIDE]:
            raise ValueError(
                f"{path} takes {[list(one.shape) for one in inputs]}; expected one input (batch, 3, {SIDE}, {SIDE}), "
                "as ArcFace's networks have"
            )
        self._name, self._one = inputs[0].name, inputs[0].shape[0] == 1

    def __call__(self, faces: Tensor) -> Tensor:
        parts = [faces[place : place + 1] for place in range(len(faces))] if self._one else [faces]
        return torch.cat([torch.from_numpy(self._session.run(None, {self._name: part.numpy()})[0]) for part in parts])
