"""Scoring with another node's network, cancelling, and pictures that are none, in the host's own modules."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


class Means:
    """Stands for a MetricModel: a picture's mean colours, in 768 numbers."""

    description = "mean colour"

    def features(self, pictures: Tensor) -> Tensor:
        return torch.nn.functional.pad(pictures.mean((2, 3)), (0, 765))


@pytest.fixture()
def folder(comfy: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(comfy.folder_paths.folder_names_and_paths, "metrics", ([str(tmp_path)], set()))
    return tmp_path


def test_the_aesthetic_score_of_a_wired_clip(folder: Path) -> None:
    """Fails if the head is not read from models/metrics, the picture's features are another's, or the row does not say
    which CLIP it was."""
    from likeness.metrics.aesthetic import FILE, AestheticHead, aesthetic_scores
    from likeness.nodes.score_quality import LikenessScoreQuality

    torch.manual_seed(0)
    head = AestheticHead()
    torch.save(head.state_dict(), folder / FILE)
    images = torch.rand(3, 20, 30, 3)
    switches = {"niqe": False, "brisque": False, "aesthetic": True}
    result = LikenessScoreQuality.execute(images, **switches, clip=Means(), method="ours")
    expected = aesthetic_scores(Means().features(images.movedim(-1, 1)), head)
    rows = result.args[0]
    assert [row.value for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    assert rows[2].picture == 2 and "mean colour" in rows[0].model and result.ui["metrics"][0]["method"] == "ours"


def test_maniqa_by_a_file_that_the_user_chose(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if the file is not listed or not read, the row does not say which it was, or a cancel waits for the end of
    a picture."""
    import comfy.model_management as management

    from likeness.devtools.tiny_maniqa import maniqa as write
    from likeness.metrics.maniqa import maniqa
    from likeness.metrics.maniqa_files import load_maniqa
    from likeness.nodes.score_quality import LikenessScoreQuality

    write(folder / "ckpt_kadid10k.pt")
    (listed,) = [one.options for one in LikenessScoreQuality.define_schema().inputs if one.id == "maniqa"]
    assert listed == ["off", "ckpt_kadid10k.pt"]
    images = torch.rand(2, 230, 240, 3)
    result = LikenessScoreQuality.execute(images, False, False, False, maniqa="ckpt_kadid10k.pt")
    expected = maniqa(images.movedim(-1, 1), load_maniqa(folder / "ckpt_kadid10k.pt"))
    rows = result.args[0]
    assert [row.value for row in rows] == pytest.approx(expected.tolist(), abs=1e-5)
    assert {(row.metric, row.model) for row in rows} == {("maniqa", "MANIQA ckpt_kadid10k, 20 crops of 224")}
    calls: list[int] = []

    def cancelled() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise management.InterruptProcessingException

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", cancelled)
    with pytest.raises(management.InterruptProcessingException):
        LikenessScoreQuality.execute(images, False, False, False, maniqa="ckpt_kadid10k.pt")
    assert len(calls) == 3


def test_sets_by_another_network_and_rows_that_accumulate(folder: Path) -> None:
    """Grey and alpha in one batch each. Fails if a wired network is not used, its name is lost, earlier rows are
    dropped or change, or an alpha is taken for a colour."""
    from likeness.metrics.fid import fid_distance
    from likeness.metrics.rows import Row
    from likeness.nodes.score_sets import LikenessScoreSets

    before = (Row("clip_t", 0.3, "ours"),)
    made, real = torch.rand(5, 8, 8, 4), torch.rand(4, 8, 8, 1)
    result = LikenessScoreSets.execute(
        made, True, False, False, "clean", references=real, model=Means(), metrics=before
    )
    rows = result.args[0]
    colours = (
        Means().features(made[..., :3].movedim(-1, 1)),
        Means().features(real.expand(-1, -1, -1, 3).movedim(-1, 1)),
    )
    assert rows[0] == before[0] and len(rows) == 2 and len(result.ui["metrics"]) == 1
    assert rows[1].value == pytest.approx(fid_distance(*colours), rel=1e-5) and rows[1].model == "mean colour"
    with pytest.raises(ValueError, match="the Inception score needs the Inception network"):
        LikenessScoreSets.execute(made, True, False, True, "clean", references=real, model=Means())


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.rand(0, 8, 8, 3), "at least one"),
        (torch.rand(8, 8, 3), "must be pictures"),
        (torch.rand(2, 8, 8, 2), "must be pictures"),
        (torch.full((2, 8, 8, 3), torch.nan), "picture 0 of pictures holds NaN"),
        (torch.rand(1, 1, 1, 3), "two blocks of 96"),
    ],
)
def test_what_is_no_picture_is_refused(folder: Path, images: Tensor, says: str) -> None:
    """Fails if a broken batch is scored, or ends in an error of a library."""
    from likeness.nodes.score_quality import LikenessScoreQuality

    with pytest.raises(ValueError, match=says):
        LikenessScoreQuality.execute(images, True, False, False)


def test_nothing_switched_on_is_told(folder: Path) -> None:
    """Fails if a node that was asked for nothing gives an empty table."""
    from likeness.nodes.score_quality import LikenessScoreQuality
    from likeness.nodes.score_sets import LikenessScoreSets

    for node, more in ((LikenessScoreQuality, ()), (LikenessScoreSets, ("clean",))):
        with pytest.raises(ValueError, match="nothing is to be scored"):
            node.execute(torch.rand(2, 8, 8, 3), False, False, False, *more)


def test_a_cancel_ends_the_scoring_and_a_wait(comfy: SimpleNamespace, folder: Path) -> None:
    """Fails if a cancel is first seen when all is scored, or a judge's pause cannot be left."""
    import comfy.model_management as management

    from likeness.nodes.host.judges import judged_rows, patient_wait
    from likeness.nodes.host.scores import as_pictures, in_batches, labels

    seen: list[int] = []

    def score(part: Tensor) -> Tensor:
        seen.append(len(part))
        management.interrupt_current_processing(True)
        return part

    bar: Any = SimpleNamespace(update=lambda _: None)
    with pytest.raises(management.InterruptProcessingException):
        in_batches(as_pictures(torch.rand(5, 8, 8, 3), "pictures"), score, bar, 2)
    assert seen == [2]
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        patient_wait(30.0)
    management.interrupt_current_processing(True)
    asked: list[str] = []
    with pytest.raises(management.InterruptProcessingException):
        judged_rows(
            torch.rand(1, 3, 8, 8),
            torch.rand(1, 3, 8, 8),
            None,
            lambda *_: asked.append("") or "Yes",
            "",
            labels("", "", 0),
        )
    assert not asked
