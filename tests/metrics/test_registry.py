"""What the registry says of metrics of sets, faces, quality and of the judge is what their functions do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from likeness.metrics.aesthetic import AestheticHead
from likeness.metrics.brisque import _HIGH, _LOW, Machine, brisque_features
from likeness.metrics.judge import Judgement, judge
from likeness.metrics.registry import METRICS

EYE = torch.eye(3, dtype=torch.float64)


def judged(answers: str) -> Judgement:
    """One reference of the subject and one of the style; one picture for two letters."""
    given = iter(answers)
    pictures = torch.zeros(len(answers) // 2, 3, 4, 4)
    said = {"y": "Yes", "n": "No"}
    return judge(pictures, torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 4), lambda *_: said[next(given)])


def noise(strength: float) -> torch.Tensor:
    wave = torch.sin(torch.arange(200) / 9)[:, None] * torch.cos(torch.arange(200) / 7)
    field = torch.randn(1, 3, 200, 200, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.avg_pool2d(field, 5, 1, 2)
    return (0.5 + 0.2 * wave + 0.1 * smooth + strength * field).clamp(0, 1)


def sets(shift: float) -> tuple[torch.Tensor, torch.Tensor]:
    features = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    return features + shift, features.flip(1)


def machine() -> Machine:
    """One support vector, the better picture's features: the farther from it, the higher the score."""
    low, high = torch.tensor(_LOW, dtype=torch.float64), torch.tensor(_HIGH, dtype=torch.float64)
    scaled = 2 * (brisque_features(noise(0.0)) - low) / (high - low) - 1
    return Machine(scaled, torch.tensor([-1.0], dtype=torch.float64))


def head() -> AestheticHead:
    """Scores the first number of an embedding."""
    own = AestheticHead()
    with torch.no_grad():
        for layer in own.layers:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.zero_()[0, 0] = 1.0
                layer.bias.zero_()
    return own


LIKER = head()
CASES: dict[str, Callable[[bool], tuple[Any, ...]]] = {
    "fid": lambda good: sets(0.1 if good else 3.0),
    "kid": lambda good: sets(0.1 if good else 3.0),
    "inception_score": lambda good: ((9.0 * torch.eye(10) if good else torch.zeros(10, 10)).repeat(30, 1),),
    "niqe": lambda good: (noise(0.0 if good else 0.4),),
    "brisque": lambda good: (noise(0.0 if good else 0.4), machine()),
    "maniqa": lambda good: (torch.full((1, 3, 224, 224), 0.9 if good else 0.1), lambda crops: crops.mean((1, 2, 3))),
    "aesthetic": lambda good: (torch.eye(768)[:1] if good else -torch.eye(768)[:1], LIKER),
    "face_distance": lambda good: ([EYE[0], None], [EYE[0] if good else EYE[1]]),
    "face_distance_of_means": lambda good: ([EYE[0], None], [EYE[0] if good else EYE[1]]),
    "face_similarity": lambda good: ([EYE[0], None], [EYE[0] if good else EYE[1]]),
    "faceless": lambda good: ([EYE[0], EYE[1] if good else None],),
    "judge": lambda good: (judged("yyyy" if good else "yyyn"),),
    "judge_subject": lambda good: (judged("ynyn" if good else "ynny"),),
    "judge_style": lambda good: (judged("nyny" if good else "nyyn"),),
    "judge_best_of_n": lambda good: (judged("nnyy" if good else "ynny"),),
    "judge_attempts": lambda good: (judged("yyny" if good else "ynyy"),),
}


@pytest.mark.parametrize("name", CASES)
def test_the_registry_tells_the_truth_of(name: str) -> None:
    """A clearly better case against a worse one. Fails where the stated direction or range is not the function's."""
    metric = METRICS[name]
    better, worse = (metric.function(*CASES[name](good)) for good in (True, False))
    low, high = metric.range
    assert low <= better <= high and low <= worse <= high
    assert better > worse if metric.direction == "higher" else better < worse
    assert metric.takes != "pictures"
