"""Boxes of others, reports and the overlay."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from likeness.segmentation.found import Candidate, Objects
from likeness.segmentation.given import read_boxes, to_bounding_boxes
from likeness.segmentation.grounded import FindOptions
from likeness.segmentation.overlay import TINT, colour, draw_objects
from likeness.segmentation.report import report_json, report_markdown

HOST = {"x": 1, "y": 2, "width": 3, "height": 4}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([1, 2, 4, 6], [[[1, 2, 4, 6]]] * 2),
        ("[[1, 2, 4, 6]]", [[[1, 2, 4, 6]]] * 2),
        (HOST, [[[1, 2, 4, 6]]] * 2),
        ([HOST, HOST], [[[1, 2, 4, 6]] * 2] * 2),
        ([[HOST], []], [[[1, 2, 4, 6]], []]),
        ([[], [[1, 2, 4, 6, 0.5]]], [[], [[1, 2, 4, 6]]]),
        ([[HOST]], [[[1, 2, 4, 6]]] * 2),
        ("", [[], []]),
        ([], [[], []]),
        ({"boxes": [[1, 2, 4, 6]]}, [[[1, 2, 4, 6]]] * 2),
        (torch.tensor([[1.0, 2, 4, 6]]), [[[1, 2, 4, 6]]] * 2),
        ('[{"box": [1, 2, 4, 6], "score": 0.25, "label": "cat"}]', [[[1, 2, 4, 6]]] * 2),
    ],
)
def test_every_form_of_boxes(given: Any, expected: list[list[list[float]]]) -> None:
    """For two frames; fails if x, y, width, height is taken for corners, or a frame's list for everyone's."""
    assert [boxes.boxes.tolist() for boxes in read_boxes(given, 2)] == expected


def test_scores_and_labels_of_given_boxes() -> None:
    """Kept where there are any, else 1 and the phrase."""
    found = read_boxes(
        [{"box": [0, 0, 1, 1], "score": 0.25, "label": "cat"}, [0, 0, 2, 2], [0, 0, 3, 3, 0.5]], 1, "dog"
    )
    assert found[0].scores.tolist() == [0.25, 1.0, 0.5] and found[0].labels == ("cat", "dog", "dog")


@pytest.mark.parametrize(
    "given", ["{", "7", "[[1, 2, 3]]", '[{"x": 1}]', '[{"box": [1, 2]}]', [["a", 1, 2, 3]], 5, [[1, 2, 3, True]]]
)
def test_what_is_no_box_is_told(given: Any) -> None:
    """No half-read box: each is refused, and the message says what is expected."""
    with pytest.raises(ValueError, match="expected a list of"):
        read_boxes(given, 1)


def test_frames_must_agree() -> None:
    with pytest.raises(ValueError, match="for 3 frames, but the batch has 2"):
        read_boxes([[HOST], [], []], 2)


@pytest.fixture()
def found() -> list[Objects]:
    masks = torch.zeros(2, 8, 10)
    masks[0, 2:6, 1:4] = 1
    masks[1, 0, 9] = 1
    candidates = (Candidate(0, 0, 0.5, 0.25, 0.9, 0.475, False), Candidate(0, 1, 1.0, 1.0, 0.1, 0.9, True))
    boxes = torch.tensor([[1.0, 2, 4, 6], [9, 0, 10, 1]])
    objects = Objects(masks, boxes, torch.tensor([0.75, 0.5]), ("a|b", "dot"), candidates)
    return [Objects.none(8, 10), objects]


def test_json_has_all_and_comes_back_as_boxes(found: list[Objects]) -> None:
    """A graph can hand the json on as boxes; the mask rows count over frames. Fails if a frame without a find goes."""
    twice = json.loads(report_json([*found, found[1]], FindOptions(), {}))["frames"]
    assert [one["mask"] for frame in twice for one in frame["objects"]] == [0, 1, 2, 3]
    text = report_json(found, FindOptions(), {"phrases": "x"})
    frames = json.loads(text)["frames"]
    assert [len(frame["objects"]) for frame in frames] == [0, 2]
    assert [one["mask"] for one in frames[1]["objects"]] == [0, 1] and frames[1]["objects"][0]["pixels"] == 12
    assert frames[1]["objects"][0]["candidates"][1] == {
        "hypothesis": 1, "iou": 1.0, "area": 1.0, "own": 0.1, "value": 0.9, "chosen": True,
    }  # fmt: skip
    again = read_boxes(text, 2)
    assert again[1].boxes.tolist() == found[1].boxes.tolist() and again[1].labels == found[1].labels
    assert len(again[0]) == 0
    assert to_bounding_boxes(found)[1][0] == {**HOST, "label": "a|b", "score": 0.75}


def test_markdown(found: list[Objects]) -> None:
    """Says the frame without a find, and keeps a label's bar from breaking the table."""
    text = report_markdown(found, FindOptions(), {"phrases": "x"})
    assert "2 objects in 2 frames" in text and "nothing in frame 0" in text and "a\\|b" in text
    assert (
        "| 1 | 0 | a\\|b | 0.750 | 1 2 4 6 | 15.0% |" in text
        and "| 0 | 1 | 1.000 | 1.000 | 0.100 | 0.900 | chosen |" in text
    )
    assert "lower box threshold" in report_markdown(found[:1], FindOptions(), {})


def test_overlay_tints_masks_and_leaves_the_rest(found: list[Objects]) -> None:
    """Outside of masks, boxes and labels the picture keeps its 8 bits; inside it is nearer to the object's colour."""
    picture = torch.full((3, 200, 300), 0.5)
    masks = torch.zeros(1, 200, 300)
    masks[0, 120:180, 150:250] = 1
    drawn = draw_objects(picture, Objects(masks, torch.tensor([[100.0, 100, 280, 190]]), torch.tensor([0.9]), ("cat",)))
    assert drawn.shape == (3, 200, 300)
    assert torch.allclose(drawn[:, :90], picture[:, :90], atol=1 / 255)
    for channel, level in enumerate(colour(0)):
        assert abs(float(drawn[channel, 160, 200]) - (0.5 + TINT * (level / 255 - 0.5))) < 2 / 255
    other = torch.zeros(2, 200, 300)
    other[1] = masks[0]
    boxes = torch.tensor([[0.0, 0, 9, 9], [100, 100, 280, 190]])
    second = draw_objects(picture, Objects(other, boxes, torch.ones(2), ("", "cat")))[:, 160, 200]
    assert torch.allclose(second, 0.5 + TINT * (torch.tensor(colour(1)) / 255 - 0.5), atol=2 / 255)
    assert torch.allclose(draw_objects(picture, Objects.none(200, 300)), picture, atol=1 / 255)
    assert draw_objects(torch.rand(3, 1, 1), Objects.none(1, 1)).shape == (3, 1, 1)
    assert len({colour(index) for index in range(64)}) == 64
