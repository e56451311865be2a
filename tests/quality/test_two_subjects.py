"""Two subjects in one picture, by the shipped workflow: does each place show its own subject?"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from likeness.experiments.client import Client
from likeness.experiments.workflow import to_api
from likeness.metrics.features import efficientnet_lite0
from likeness.metrics.similarity import subject_similarity
from likeness.tinyworld.bench.graphs import true_tensor
from likeness.tinyworld.bench.protocol import on_white, subject_masks
from likeness.tinyworld.truth import reference_styles, write_references

WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "image_alchemy_two_subjects.json"
SUBJECTS = ("duck", "peach")  # left and right
MARGIN = 0.05  # of similarity, by which its own subject must be ahead in each half


def references(subject: str) -> Tensor:
    """(styles, 3, 64, 64) in [0, 1]."""
    return torch.stack([true_tensor(subject, style) for style in reference_styles()])


def test_each_half_looks_like_its_own_subject(server: Any, figures: dict[str, Any]) -> None:
    """Oracle: the true pictures. Fails if one LoRA paints both places, the second touches the first, masks are
    swapped, or nothing is painted, for the scene's creature and food are neither of them."""
    client, base = Client(server.address), Path(server.base)
    for subject in SUBJECTS:
        write_references(subject, base / "input" / f"likeness_{subject}")
    graph = to_api(json.loads(WORKFLOW.read_text("utf-8")), client.object_info())
    run = client.run(graph, timeout=900)
    saved = next(node for node, body in graph.items() if body["class_type"] == "SaveImage")
    picture = Image.open(io.BytesIO(client.view(run.files(saved)[0]))).convert("RGB")
    both = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    assert both.shape[2:] == (64, 128)
    features = efficientnet_lite0()
    halves = torch.cat([both[..., :64], both[..., 64:]])
    alone = on_white(halves, subject_masks(halves))  # as the references are
    table = [[subject_similarity(half[None], references(s), features) for s in SUBJECTS] for half in alone]
    figures["two subjects"] = table
    assert table[0][0] > table[0][1] + MARGIN, table
    assert table[1][1] > table[1][0] + MARGIN, table
