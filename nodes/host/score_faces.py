"""Faces found and compared by networks that the host keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from PIL import Image
from torch import Tensor

from ...metrics.face_detection import Face, detect, find_faces, load_mtcnn
from ...metrics.face_similarity import OnnxEmbedder, arcface_crop, face_similarity
from ...metrics.faces import SIDE, embed_faces, face_distances, facenet_crop, load_facenet
from ...metrics.rows import Row
from .scores import Labels, network, network_file

NO_NETWORK = "none"
_MEMORY = 1024**3
_MISSING = "no face was found"


def face_rows(
    pictures: Tensor, references: Tensor | None, distance_network: str, similarity_network: str, labels: Labels
) -> tuple[list[Row], Tensor]:
    """Rows of (N, 3, H, W) against (M, 3, H', W'), and the faces found, (N, 160, 160, 3).

    Raises:
        ValueError: a network without references or the other way round, a package or file that is missing.
    """
    networks = [name for name in (distance_network, similarity_network) if name != NO_NETWORK]
    if networks and references is None:
        raise ValueError(f"{networks[0]} compares faces with references: wire photos of the person")
    if references is not None and not networks:
        raise ValueError(
            "references are wired, but no network compares faces: choose distance_network or the other one"
        )
    bar = comfy.utils.ProgressBar(len(pictures) + (0 if references is None else len(references)))
    mtcnn = network((), "MTCNN", load_mtcnn)  # its weights lie in facenet-pytorch

    def look(picture: Image.Image) -> Face | None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        found = detect(mtcnn.loaded(), picture)
        bar.update(1)
        return found

    made = find_faces(pictures, look)
    name = "MTCNN"
    rows = [
        labels.row("faceless", float(face is None), name, picture=number, note="" if face else _MISSING)
        for number, face in enumerate(made)
    ]
    if references is not None:
        known = find_faces(references, look)
        lost = sum(face is None for face in known)
        note = f"{lost} of {len(known)} references have no face, and are left out" if lost else ""
        if distance_network != NO_NETWORK:
            rows += _distance_rows(made, known, distance_network, labels, note)
        if similarity_network != NO_NETWORK:
            path = network_file((similarity_network,), "the face network")
            embedder = OnnxEmbedder(path)
            alike = face_similarity(*(embed_faces(faces, arcface_crop, embedder) for faces in (made, known)))
            missing = "no reference has a face" if lost == len(known) else _MISSING
            rows += labels.per_picture("face_similarity", alike.per_picture, f"{path.name}, MTCNN, 112", missing)
    return rows, _shown(made)


def _distance_rows(
    made: Sequence[Face | None], known: Sequence[Face | None], file: str, labels: Labels, note: str
) -> list[Row]:
    path = network_file((file,), "FaceNet's weights")
    managed = network((path,), "FaceNet", lambda: load_facenet(path))

    def embed(faces: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()
        facenet: Any = managed.loaded(_MEMORY)
        rows: Tensor = facenet(faces.to(managed.device))
        return rows

    found = face_distances(*(embed_faces(faces, facenet_crop, embed) for faces in (made, known)))
    name = f"InceptionResnetV1 {path.name}, MTCNN 160"
    missing = "no reference has a face" if found.faceless_references == len(known) else _MISSING
    rows = labels.per_picture("face_distance", found.per_picture, name, missing)
    between = found.between_means
    return [*rows, labels.row("face_distance_of_means", between, name, note if between is not None else missing)]


def _shown(faces: Sequence[Face | None]) -> Tensor:
    grey = torch.full((3, SIDE, SIDE), 0.5)
    crops = [grey if face is None else (facenet_crop(face) * 128 + 127.5) / 255 for face in faces]
    return torch.stack(crops).movedim(1, -1).clamp(0, 1)
