"""Does tiny-unet follow its prompts? KSampler draws, a judge of real pictures names."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

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


def test_pictures_show_what_was_asked(judge: Any, client: Any, studio: Any) -> None:
    """50 subjects × 2 of 6 styles in turn, one seed each. Bars: subject in ≥ 50 % (chance 2 %), style in ≥ 85 %.

    Fails if the shipped weights, the assembly of the checkpoint or the word rows are wrong.
    """
    split = load_split()
    asked, count = asked_subjects(split), len(split.pretrain_styles)
    pairs = [(i, (i + k) % count) for i in range(len(asked)) for k in (0, 3)]
    graph = studio.base_graph()
    for i, j in pairs:
        prompt = caption(words(asked[i]), split.pretrain_styles[j], None)
        studio.ask(graph, f"{i} {j}", ["model", 0], prompt, seed=1000 + i)
    run = client.run(graph, timeout=900)
    drawn = torch.cat([studio.pictures_of(client, run, f"{i} {j}") for i, j in pairs])
    subjects, styles = torch.tensor(pairs).unbind(1)
    subject, style = accuracy(judge, drawn, subjects, styles)
    assert subject >= 0.50, f"subject named right {subject:.1%}, style {style:.1%}"
    assert style >= 0.85, f"subject named right {subject:.1%}, style {style:.1%}"
