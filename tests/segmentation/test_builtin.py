"""The adapter around the subject finder, with a network whose answer is known: brightness."""

from __future__ import annotations

import torch
from torch import nn

from likeness.segmentation.builtin import SubjectFinder, expected_iou
from likeness.segmentation.choose import RULES
from likeness.segmentation.found import Detector, Segmenter
from likeness.segmentation.grounded import FindOptions, find_objects
from likeness.segmentation.subject import load_subject_segmenter


class Brightness(nn.Module):
    """Takes what is bright for the subject."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def probability(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.mean(1) * self.weight


def scene() -> torch.Tensor:
    picture = torch.full((3, 60, 80), 0.1)
    picture[:, 10:30, 5:25] = 0.9
    picture[:, 35:55, 40:75] = 0.8
    return picture


def test_finds_both_things_for_any_phrase() -> None:
    """Two pieces, the surer first, exact masks; fails if detector and segmenter disagree on a pixel's place."""
    network = Brightness()
    finder = SubjectFinder(lambda: network)
    assert isinstance(finder, Detector) and isinstance(finder, Segmenter)
    objects = find_objects(scene(), ("a cat", "b"), finder, finder, FindOptions())
    assert objects.labels == ("a cat", "a cat")
    assert objects.boxes.tolist() == [[5, 10, 25, 30], [40, 35, 75, 55]]
    assert torch.equal(objects.union, (scene()[0] > 0.5).float())
    assert len(objects.candidates) == 6
    assert len(find_objects(scene(), (), finder, finder, FindOptions(box_threshold=0.85))) == 1


def test_masks_stay_in_the_box() -> None:
    """A box around a part of a thing, and of the ground above it, gives that part in its place."""
    network = Brightness()
    found = next(SubjectFinder(lambda: network).hypotheses(scene(), torch.tensor([[2.0, 4, 15, 24]])))
    assert found.masks.shape == (3, 60, 80)
    part = torch.zeros(60, 80, dtype=torch.bool)
    part[10:24, 5:15] = True
    assert all(torch.equal(mask > 0.5, part) for mask in found.masks)


def test_expected_iou_is_the_mean_over_truths() -> None:
    """With one unsure pixel inside (.8) and one outside (.25): E[∩] / E[∪] = (1 + .8) / (2 + .25)."""
    assert abs(expected_iou(torch.tensor([[1.0, 0.8], [0.25, 0.0]])) - 1.8 / 2.25) < 1e-6
    assert expected_iou(torch.zeros(2, 2)) == 0.0


def test_one_pixel_and_nothing() -> None:
    """The smallest picture works; a dark one has no find."""
    network = Brightness()
    finder = SubjectFinder(lambda: network)
    assert len(find_objects(torch.ones(3, 1, 1), (), finder, finder, FindOptions())) == 1
    assert len(find_objects(torch.zeros(3, 9, 9), (), finder, finder, FindOptions())) == 0


def test_the_shipped_network() -> None:
    """A red disc on a plain ground, at sizes it was not taught at; fails if the adapter feeds it another range or
    scale, or the shipped weights are another network's."""
    network = load_subject_segmenter()
    finder = SubjectFinder(lambda: network)
    for height, width in ((96, 96), (301, 200)):
        y, x = torch.meshgrid(torch.arange(height) - height * 0.55, torch.arange(width) - width * 0.5, indexing="ij")
        disc = (y.square() + x.square()).sqrt() < 0.3 * min(height, width)
        ground = torch.tensor([0.85, 0.9, 0.8]).view(3, 1, 1).expand(3, height, width)
        picture = torch.where(disc, torch.tensor([0.8, 0.15, 0.1]).view(3, 1, 1), ground)
        for rule in RULES:
            union = find_objects(picture, (), finder, finder, FindOptions(rule=rule)).union > 0.5
            assert float((union & disc).sum() / (union | disc).sum()) > 0.8
