"""Faces: found in a photograph that has one and not in one that has none; distances against sums in plain Python."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from likeness.metrics.face_detection import Face, detect, find_faces, load_mtcnn
from likeness.metrics.face_similarity import (
    OnnxEmbedder,
    arcface_crop,
    face_similarity,
    mean_face_similarity,
    similarity_transform,
)
from likeness.metrics.faces import (
    embed_faces,
    face_distance,
    face_distance_of_means,
    face_distances,
    facenet_crop,
    load_facenet,
)

EYE = torch.eye(3, dtype=torch.float64)
TEMPLATE = torch.tensor(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
).double()
"""Where ArcFace's networks were trained to see eyes, nose and mouth."""


@pytest.fixture(scope="module")
def mtcnn() -> Any:
    pytest.importorskip("facenet_pytorch", reason="NOT TESTED: pip install --no-deps facenet-pytorch==2.6.0")
    return load_mtcnn()


@pytest.fixture(scope="module")
def astronaut() -> np.ndarray:
    picture: np.ndarray = pytest.importorskip("skimage.data").astronaut()[:256, 96:352]
    return picture


def as_picture(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255


def test_one_face_in_the_astronaut_and_none_in_the_coffee(mtcnn: Any, astronaut: np.ndarray) -> None:
    """Fails if a face is missed or made up; the crop is not facenet-pytorch's own; or a picture without a face, or too
    small for one, raises. The face of this photograph lies at about (126, 118)."""
    coffee = np.array(Image.fromarray(pytest.importorskip("skimage.data").coffee()).resize((256, 256)))
    steps: list[tuple[int, int]] = []
    pictures = torch.cat([as_picture(astronaut), as_picture(coffee)])
    face, nothing = find_faces(pictures, lambda one: detect(mtcnn, one), lambda *step: steps.append(step))
    assert nothing is None and face is not None and face.probability > 0.99
    left, top, right, bottom = face.box
    assert left < 126 < right and top < 118 < bottom and 50 < right - left < 150
    eyes, nose, mouth = face.points[:2, 1].mean(), face.points[2, 1], face.points[3:, 1].mean()
    assert eyes < nose < mouth and face.points[0, 0] < face.points[1, 0]
    assert torch.allclose(facenet_crop(face), mtcnn(Image.fromarray(astronaut)), atol=1e-6)
    assert detect(mtcnn, Image.new("RGB", (19, 300))) is None and steps == [(1, 2), (2, 2)]


def test_a_turned_face_is_turned_back(mtcnn: Any, astronaut: np.ndarray) -> None:
    """The photograph, and the same turned by 25 degrees: one aligned face, the mouth below. Fails if the crop is turned
    the wrong way (they then are 50 degrees apart: correlation .2), or upside down."""
    crops = []
    for degrees in (0, 25):
        face = detect(mtcnn, Image.fromarray(astronaut).rotate(degrees, Image.Resampling.BILINEAR))
        assert face is not None
        crops.append(arcface_crop(face)[:, 20:100, 20:92])
        turn = similarity_transform(face.points, TEMPLATE)
        assert torch.allclose(face.points @ turn[:, :2].T + turn[:, 2], TEMPLATE, atol=8)
    upright, turned = (crop.flatten() for crop in crops)
    upside_down = crops[1].flip(1).flatten()
    assert torch.corrcoef(torch.stack([upright, turned]))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack([upright, upside_down]))[0, 1] < 0.7


@given(st.integers(0, 10**6), st.floats(-3, 3), st.floats(0.2, 4))
@settings(max_examples=20, deadline=None)
def test_a_rotation_with_scale_is_found(seed: int, angle: float, scale: float) -> None:
    """Fails if a known turn, scale and shift is not given back, or a mirror image is turned into a reflection."""
    points = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turn = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    shift = torch.tensor([3.0, -2.0], dtype=torch.float64)
    found = similarity_transform(points, points @ turn.T + shift)
    assert torch.allclose(found, torch.cat([turn, shift[:, None]], 1), atol=1e-6)
    assert torch.linalg.det(similarity_transform(points, points * torch.tensor([-1.0, 1.0]))[:, :2]) > -1e-12


def test_a_crop_takes_the_pixels_that_it_says() -> None:
    """Points already at the template's place: the crop is the picture. Fails by half a pixel's shift."""
    pixels = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    points = TEMPLATE
    face = Face(Image.fromarray(pixels), (0, 0, 112, 112), points, 1.0)
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 127.5) / 127.5
    assert torch.allclose(arcface_crop(face)[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=0.02)
    edge = Face(Image.fromarray(pixels), (-5.0, 8.0, 60.7, 500.0), points, 1.0)
    assert facenet_crop(edge).shape == (3, 160, 160)
    with pytest.raises(ValueError, match="outside of its picture"):
        facenet_crop(Face(Image.fromarray(pixels), (200.0, 0.0, 210.0, 5.0), points, 1.0))


def test_both_published_distances_by_hand() -> None:
    """Two axes against a third and one of themselves. Fails if the two figures are one, or a missing face counts."""
    found = face_distances([EYE[0], None, EYE[2]], [EYE[0], EYE[1], None])
    near, far = math.sqrt(0.5), math.sqrt(1.5)  # to (½, ½, 0)
    assert found.per_picture == (pytest.approx(near), None, pytest.approx(far))
    assert found.mean_of_distances == pytest.approx((near + far) / 2)
    assert found.between_means == pytest.approx(math.sqrt(0.25 + 0.25))  # (½, ½, 0) to (½, 0, ½)
    assert (found.faceless, found.faceless_references) == (1, 1)
    alike = face_similarity([EYE[0] + EYE[1], None], [2 * EYE[0], EYE[2]])
    assert alike.per_picture == (pytest.approx(math.sqrt(0.5) / 2), None)
    assert (alike.faceless, alike.faceless_references) == (1, 0)


@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_bounds_order_and_identity(seed: int, many: int, others: int) -> None:
    """Fails if a distance leaves [0, 2], the mean of distances falls below that of means, a length matters, or the
    order of pictures does."""
    chance = torch.Generator().manual_seed(seed)
    made = list(torch.randn(many, 4, generator=chance, dtype=torch.float64))
    known = list(torch.randn(others, 4, generator=chance, dtype=torch.float64))
    mean, between = face_distance(made, known), face_distance_of_means(made, known)
    assert 0 <= between <= mean + 1e-12 and mean <= 2
    assert face_distance([3 * face for face in made[::-1]], known[::-1]) == pytest.approx(mean)
    assert face_distance_of_means(known, made) == pytest.approx(between)
    assert face_distance(made[:1], made[:1]) == pytest.approx(0, abs=1e-7)
    assert mean_face_similarity(made[:1], made[:1]) == pytest.approx(1)


def test_no_face_is_no_figure() -> None:
    """Fails if a set without faces gives a distance of 0, or an empty set passes."""
    found = face_distances([None, None], [EYE[0]])
    assert found.mean_of_distances is None and found.between_means is None and found.faceless == 2
    assert math.isnan(face_distance([EYE[0]], [None])) and math.isnan(mean_face_similarity([None], [EYE[0]]))
    for made, known in (([], [EYE[0]]), ([EYE[0]], [])):
        with pytest.raises(ValueError, match="expected some"):
            face_distances(made, known)
        with pytest.raises(ValueError, match="expected some"):
            face_similarity(made, known)
    with pytest.raises(ValueError, match="of length 0"):
        face_distances([torch.zeros(3)], [EYE[0]])


def test_batches_do_not_matter_and_the_missing_stay_in_place() -> None:
    """A random embedder. Fails if a face's embedding goes to another picture, or a batch of one differs."""
    torch.manual_seed(0)
    embedder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 160 * 160, 4))
    chance = np.random.default_rng(0)
    whole = [Image.fromarray(chance.integers(0, 256, (40, 40, 3), dtype=np.uint8)) for _ in range(3)]
    faces = [Face(picture, (0.0, 0.0, 40.0, 40.0), torch.zeros(5, 2), 1.0) for picture in whole]
    mixed = [faces[0], None, faces[1], faces[2]]
    found = embed_faces(mixed, facenet_crop, embedder, batch=2)
    assert found[1] is None
    for face, row in zip(mixed, found, strict=True):
        if face is not None and row is not None:
            alone = embed_faces([face], facenet_crop, embedder)[0]
            assert alone is not None and torch.allclose(alone, row, atol=1e-5)


def test_facenets_file_is_read_and_another_refused(tmp_path: Path) -> None:
    """A random network's file with the classes that the published one has. Fails if it is not read, or a file of
    something else is taken."""
    network = pytest.importorskip("facenet_pytorch").InceptionResnetV1(pretrained=None).eval()
    path = tmp_path / "vggface2.pt"
    torch.save({**network.state_dict(), "logits.weight": torch.zeros(1, 512), "logits.bias": torch.zeros(1)}, path)
    picture = torch.rand(1, 3, 80, 80)
    with torch.no_grad():
        assert torch.equal(load_facenet(path)(picture), network(picture))
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is no InceptionResnetV1"):
        load_facenet(path)


def test_a_user_s_own_network_in_onnx(tmp_path: Path) -> None:
    """Fails if rubbish is taken for a network, or the missing package is not named."""
    path = tmp_path / "face.onnx"
    path.write_bytes(b"no network")
    with pytest.raises(ValueError, match=r"pip install onnxruntime|cannot be read as ONNX"):
        OnnxEmbedder(path)
