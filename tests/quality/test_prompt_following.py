"""Do the small models follow their prompts? KSampler draws, a judge of real pictures names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from likeness.experiments.client import Client
from likeness.tinyworld.classifier import accuracy, asked_subjects
from likeness.tinyworld.dataset import caption, plain_batch, words
from likeness.tinyworld.split import load_split


def test_judge_knows_real_pictures(judge: Any, real_pictures: dict[tuple[str, str], Any]) -> None:
    """Fails if the judge is too weak for its verdict to mean anything."""
    split = load_split()
    asked = asked_subjects(split)
    pairs = [(i, j) for i in range(len(asked)) for j in range(len(split.pretrain_styles))]
    real = plain_batch(np.stack([real_pictures[asked[i], split.pretrain_styles[j]] for i, j in pairs]))
    subjects, styles = torch.tensor(pairs).unbind(1)
    subject, style = accuracy(judge, real, subjects, styles)
    assert subject >= 0.95 and style >= 0.95


@pytest.fixture(scope="module")
def named(judge: Any, server: Any, studio: Any, checkpoint: str, figures: dict[str, Any]) -> tuple[float, float]:
    """Shares named right (subject of 50, style of 6): 50 subjects × 2 of 6 styles in turn, one seed each, KSampler."""
    client, split = Client(server.address), load_split()
    asked, count = asked_subjects(split), len(split.pretrain_styles)
    pairs = [(i, (i + k) % count) for i in range(len(asked)) for k in (0, 3)]
    graph = studio.base_graph(checkpoint)
    for i, j in pairs:
        prompt = caption(words(asked[i]), split.pretrain_styles[j], None)
        studio.ask(graph, f"{i} {j}", ["model", 0], prompt, seed=1000 + i)
    run = client.run(graph, timeout=900)
    drawn = torch.cat([studio.pictures_of(client, run, f"{i} {j}") for i, j in pairs])
    subjects, styles = torch.tensor(pairs).unbind(1)
    right = accuracy(judge, drawn, subjects, styles)
    figures[f"subject and style named right, {checkpoint}"] = right
    return right


def test_pictures_show_the_subject_that_was_asked(named: tuple[float, float]) -> None:
    """Bar: ≥ 50 % of 50 subjects (chance 2 %). Fails if weights, checkpoint or word rows are wrong."""
    assert named[0] >= 0.50


def test_pictures_show_the_style_that_was_asked(named: tuple[float, float]) -> None:
    """Bar: ≥ 85 % of 6 styles (chance 17 %)."""
    assert named[1] >= 0.85
