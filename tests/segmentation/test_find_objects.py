"""The pipeline with a detector and a segmenter whose answers are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from likeness.segmentation.choose import box_pixels
from likeness.segmentation.found import Boxes, Detector, Hypotheses, Objects, Segmenter, clip_boxes
from likeness.segmentation.grounded import FindOptions, best_boxes, find_objects, split_phrases


class Fixed:
    """Finds the boxes that it was given, where their scores reach the threshold."""

    name = "fixed"

    def __init__(self, boxes: Boxes) -> None:
        self.boxes = boxes

    def detect(self, pictures: torch.Tensor, phrases: Sequence[str], low: float, words: float) -> list[Boxes]:
        good = [row for row, score in enumerate(self.boxes.scores.tolist()) if score >= low]
        return [self.boxes.take(good) for _ in pictures]


class Filled:
    """Three hypotheses: the left half of the box, the box, the whole picture."""

    name = "filled"

    def hypotheses(self, picture: torch.Tensor, boxes: torch.Tensor) -> Iterator[Hypotheses]:
        for x0, y0, x1, y1 in boxes.tolist():
            masks = torch.zeros(3, *picture.shape[1:])
            for mask, box in zip(masks, ([x0, y0, (x0 + x1) / 2, y1], [x0, y0, x1, y1]), strict=False):
                mask[box_pixels(box, *mask.shape)] = 0.9
            masks[2] = 1
            yield Hypotheses(masks, torch.tensor([0.1, 0.2, 0.9]))


def boxes_of(rows: list[list[float]], scores: list[float]) -> Boxes:
    labels = tuple(f"thing {row}" for row in range(len(rows)))
    return Boxes(torch.tensor(rows).view(-1, 4), torch.tensor(scores), labels)


def iou(a: list[float], b: list[float]) -> float:
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def test_stand_ins_are_what_the_types_ask_for() -> None:
    assert isinstance(Fixed(Boxes.none()), Detector) and isinstance(Filled(), Segmenter)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_duplicates_go_and_the_best_stay(data: st.DataObject) -> None:
    """Against a greedy loop in plain Python; fails if the worse of two is kept, or if `most` cuts before sorting."""
    count = data.draw(st.integers(0, 8))
    corner = st.integers(0, 12)
    rows = []
    for _ in range(count):
        x0, y0 = data.draw(corner), data.draw(corner)
        rows.append(
            [float(x0), float(y0), float(x0 + data.draw(st.integers(0, 6))), y0 + data.draw(st.integers(0, 6)) + 0.0]
        )
    scores = data.draw(st.permutations([0.1 * (number + 1) for number in range(count)]))
    most, overlap = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    kept: list[int] = []
    for row in sorted(range(count), key=lambda row: -scores[row]):
        box = rows[row]
        if box[2] > box[0] and box[3] > box[1] and all(overlap >= 1 or iou(box, rows[k]) <= overlap for k in kept):
            kept.append(row)
    found = best_boxes(boxes_of(rows, scores), 20, 20, FindOptions(most=most, overlap=overlap))
    assert found.labels == tuple(f"thing {row}" for row in kept[:most])


def test_masks_boxes_and_candidates_belong_together() -> None:
    """Best first, a mask each from its own box, hard, and the choice's terms; fails if rows are mixed up."""
    found = boxes_of([[0, 0, 4, 4], [5, 5, 9, 10]], [0.4, 0.8])
    objects = find_objects(torch.rand(3, 12, 10), ("x",), Fixed(found), Filled(), FindOptions())
    assert objects.labels == ("thing 1", "thing 0") and len(objects) == 2
    expected = torch.zeros(2, 12, 10)
    expected[0, 5:10, 5:9] = 1
    expected[1, :4, :4] = 1
    assert torch.equal(objects.masks, expected)
    assert torch.equal(objects.union, expected.sum(0))
    assert [one.hypothesis for one in objects.chosen] == [1, 1] and len(objects.candidates) == 6
    own = find_objects(torch.rand(3, 12, 10), ("x",), Fixed(found), Filled(), FindOptions(rule="model's own score"))
    assert [one.hypothesis for one in own.chosen] == [2, 2]


def test_nothing_found_keeps_the_size() -> None:
    """An empty find has an empty union of the picture's size, not of none."""
    objects = find_objects(torch.rand(3, 5, 7), ("x",), Fixed(boxes_of([[0, 0, 2, 2]], [0.2])), Filled(), FindOptions())
    assert len(objects) == 0 and objects.union.shape == (5, 7) and not objects.union.any()
    assert len(Objects.none(3, 4)) == 0


def test_given_boxes_are_used_and_held_inside() -> None:
    """The detector is not asked; a box over the edge is cut, one outside is dropped."""
    given_boxes = boxes_of([[-5, -5, 3, 3], [50, 50, 60, 60], [3, 3, 2, 1]], [1, 1, 1])
    objects = find_objects(torch.rand(3, 8, 8), (), None, Filled(), FindOptions(), given_boxes)
    assert objects.boxes.tolist() == [[0, 0, 3, 3], [2, 1, 3, 3]]
    with pytest.raises(ValueError, match="neither a detector nor a box"):
        find_objects(torch.rand(3, 8, 8), (), None, Filled(), FindOptions())


def test_smallest_picture_and_64_objects() -> None:
    """One pixel; and 64 boxes are 64 masks."""
    one = find_objects(torch.rand(3, 1, 1), (), None, Filled(), FindOptions(), boxes_of([[0, 0, 1, 1]], [1.0]))
    assert one.masks.tolist() == [[[1.0]]]
    grid = [[8.0 * x, 8.0 * y, 8.0 * x + 8, 8.0 * y + 8] for x in range(8) for y in range(8)]
    seen = []
    options = FindOptions(most=64)
    every = boxes_of(grid, [1.0] * 64)
    many = find_objects(torch.rand(3, 64, 64), (), None, Filled(), options, every, lambda: seen.append(1))
    assert len(many) == 64 and many.union.all() and float(many.masks.sum()) == 64 * 64 and len(seen) == 64


def test_cancel_ends_the_search() -> None:
    """What `between` raises comes out at once."""

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        find_objects(torch.rand(3, 4, 4), (), None, Filled(), FindOptions(), boxes_of([[0, 0, 1, 1]], [1.0]), stop)


@pytest.mark.parametrize(
    ("picture", "says"),
    [
        (torch.rand(4, 4, 3), r"must be \(3, H, W\)"),
        (torch.full((3, 4, 4), 255.0), "must lie in"),
        (torch.full((3, 4, 4), float("nan")), "must lie in"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "floats"),
    ],
)
def test_wrong_pictures_are_told(picture: torch.Tensor, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        find_objects(picture, (), Fixed(Boxes.none()), Filled(), FindOptions())


def test_wrong_options_and_boxes_are_told() -> None:
    for wrong, says in (({"box_threshold": 2}, "box_threshold"), ({"most": 0}, "maximum"), ({"rule": "x"}, "choice")):
        with pytest.raises(ValueError, match=says):
            FindOptions(**wrong)
    with pytest.raises(ValueError, match="finite"):
        clip_boxes(torch.tensor([[0, 0, float("nan"), 1]]), 4, 4)
    with pytest.raises(ValueError, match="as many scores"):
        Boxes(torch.zeros(2, 4), torch.zeros(1), ("a", "b"))


def test_phrases() -> None:
    """What people type; fails if a space inside of a phrase splits it."""
    assert split_phrases("a cat,  a\tdog\n\n red remote control. ; ") == ("a cat", "a dog", "red remote control")
    assert split_phrases(" \n") == ()
