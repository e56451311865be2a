"""MetricModel: each picture is embedded once, in its place, and a cancel stops between batches."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from likeness.metrics.backbones import Backbone, Tower
from likeness.metrics.preprocess import Preprocess


class Counting(Tower):
    """A picture's features are its corner's colours; counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seen: list[int] = []

    def pictures(self, seen: Tensor) -> Tensor:
        self.seen.append(len(seen))
        return seen[:, :, :2, :2].flatten(1) + 2


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 12, 10, generator=torch.Generator().manual_seed(seed))


@pytest.fixture()
def made(comfy: SimpleNamespace, tmp_path: Path) -> tuple[Any, Counting, Backbone]:
    from likeness.nodes.host.metric_model import MetricModel

    file = tmp_path / "weights"
    file.write_text("1")
    network = Counting()
    backbone = Backbone("counting", "CLIP", Preprocess(8, 8), (file,), lambda: network)
    return MetricModel(backbone, lambda: network), network, backbone


def test_each_picture_is_embedded_once_and_in_its_place(made: tuple[Any, Counting, Backbone]) -> None:
    """Fails where a double, a second call, or a list instead of a batch costs anything, or rows change places."""
    model, network, _ = made
    batch = pictures(5)
    want = torch.cat([model.embedder(picture[None]) for picture in batch])
    network.seen.clear()
    doubled = torch.cat([batch[3:], batch[:2], batch[3:4]])
    torch.testing.assert_close(model.features(doubled), want[[3, 4, 0, 1, 3]])
    assert network.seen == [4]
    torch.testing.assert_close(model.features(batch), want)
    torch.testing.assert_close(model.features(list(batch.flip(0))), want.flip(0))
    assert network.seen == [4, 1]
    assert model.subject_metric == "clip_i" and model.description == "CLIP counting, 8 bicubic, crop 8"


def test_another_network_or_shape_is_another_embedding(made: tuple[Any, Counting, Backbone]) -> None:
    """Fails where the key of what is kept lacks the weights' file, or the picture's shape (same numbers)."""
    from likeness.nodes.host.metric_model import MetricModel

    model, network, backbone = made
    batch = pictures(2)
    model.features(batch)
    backbone.files[0].write_text("another")
    changed = MetricModel(backbone, lambda: network)
    network.seen.clear()
    changed.features(batch)
    changed.features(batch.reshape(2, 3, 10, 12))
    assert network.seen == [2, 2]


def test_the_oldest_are_forgotten(made: tuple[Any, Counting, Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a long run keeps every embedding for ever, or more pictures than are kept lose their rows."""
    from likeness.nodes.host import metric_model

    model = made[0]
    monkeypatch.setattr(metric_model, "_MOST", 3)
    batch = pictures(5, seed=1)
    assert torch.equal(model.features(batch), model.features(batch)) and len(metric_model._known) == 3


def test_a_cancel_stops_between_batches(made: tuple[Any, Counting, Backbone], monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where all of 40 pictures are embedded before the user is heard."""
    import comfy.model_management as management

    model, network, _ = made

    def cancelled() -> None:
        raise management.InterruptProcessingException

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", cancelled)
    with pytest.raises(management.InterruptProcessingException):
        model.features(pictures(40, seed=2))
    assert network.seen == [16]


def test_there_must_be_pictures(made: tuple[Any, Counting, Backbone]) -> None:
    """Fails where an empty batch crashes below."""
    with pytest.raises(ValueError, match="no pictures"):
        made[0].features(pictures(0))
