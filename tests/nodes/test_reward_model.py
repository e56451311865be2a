"""ImageReward behind the METRIC_MODEL socket: found in its folder, judged once, refused where a direction is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from likeness.devtools import tiny_image_reward as tiny
from likeness.metrics.backbones import recognise
from likeness.metrics.image_reward import ImageReward

TEXTS = ["a red dog", "a cat on a mat", "a red dog"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("rewards")
    tiny.image_reward(base / "ImageReward")
    return base


@pytest.fixture()
def model(comfy: SimpleNamespace, written: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    from likeness.nodes.host import reward_model
    from likeness.nodes.load_metric_model import LikenessLoadMetricModel

    monkeypatch.setitem(comfy.folder_paths.folder_names_and_paths, "metrics", ([str(written)], set()))
    monkeypatch.setattr(reward_model, "_known", type(reward_model._known)())
    with torch.inference_mode():  # as the host executes nodes
        found, description = LikenessLoadMetricModel.execute("ImageReward", "auto").args
    assert description == "ImageReward, 224 bicubic, crop 224"
    return found


def expected(written: Path, images: torch.Tensor, texts: list[str]) -> list[float]:
    backbone = recognise(written / "ImageReward")
    network = backbone.load()
    judge = ImageReward(backbone, lambda: network, 1)  # type: ignore[arg-type, return-value]
    found: list[float] = judge(images.movedim(-1, 1), texts).tolist()
    return found


def pictures() -> torch.Tensor:
    return torch.rand(3, 30, 40, 3, generator=torch.Generator().manual_seed(0))


def test_score_prompt_gives_a_reward_a_picture(model: Any, written: Path) -> None:
    """Fails where the folder is not found, the row has another name, model, prompt or note, a reward is another
    picture's, or the token is judged."""
    from likeness.nodes.score_prompt import LikenessScorePrompt

    long = "the " * 40 + "dog"
    with torch.inference_mode():
        result = LikenessScorePrompt.execute(
            pictures(), model, "\n".join(["a sks dog", long, "a cat"]), "sks", "dog", "matched", "cosine", method="ours"
        )
    rows, _, mean = result.args
    want = expected(written, pictures(), ["a dog", long, "a cat"])
    assert [row.value for row in rows] == pytest.approx(want, abs=1e-4) and mean == pytest.approx(
        sum(want) / 3, abs=1e-4
    )
    assert {(row.metric, row.model, row.method) for row in rows} == {("image_reward", model.description, "ours")}
    assert [row.prompt for row in rows] == ["a dog", long, "a cat"]
    assert [row.note for row in rows] == ["", "prompt cut to 35 tokens", ""] and [row.picture for row in rows] == [
        0,
        1,
        2,
    ]
    for pairing, score in (("all pairs", "cosine"), ("matched", "2.5 · max(cos, 0)")):
        with pytest.raises(ValueError, match="one score"):
            LikenessScorePrompt.execute(pictures(), model, "a dog", "", "", pairing, score)
    with pytest.raises(ValueError, match="3 pictures and 2 prompts"):
        LikenessScorePrompt.execute(pictures(), model, "a dog\na cat", "", "", "matched", "cosine")


def test_a_pair_is_judged_once(model: Any, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a double or a second call costs anything, a picture with another prompt is taken for the same, or
    the oldest are not forgotten."""
    from likeness.nodes.host import reward_model

    images = pictures().movedim(-1, 1)
    seen: list[int] = []
    network = model.embedder.loaded()
    real = network.rewards
    monkeypatch.setattr(network, "rewards", lambda shown, tokens: seen.append(len(shown)) or real(shown, tokens))
    want = expected(written, pictures(), TEXTS)
    doubled = model.rewards(images[[0, 1, 2, 0]], [*TEXTS, TEXTS[0]])
    assert doubled.tolist() == pytest.approx([*want, want[0]], abs=1e-4) and seen == [3]
    assert model.rewards(list(images.flip(0)), TEXTS[::-1]).tolist() == pytest.approx(want[::-1], abs=1e-4)
    assert seen == [3]
    other = float(model.rewards(images[:1], ["a cat"]))
    assert seen == [3, 1] and other == pytest.approx(expected(written, pictures()[:1], ["a cat"])[0], abs=1e-4)
    monkeypatch.setattr(reward_model, "_MOST", 2)
    model.rewards(images, TEXTS)
    assert len(reward_model._known) == 2


def test_a_cancel_stops_between_batches(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where all of 40 pictures are judged before the user is heard."""
    import comfy.model_management as management

    calls: list[int] = []

    def cancelled() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise management.InterruptProcessingException

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", cancelled)
    counted: list[int] = []
    network = model.embedder.loaded()
    monkeypatch.setattr(network, "rewards", lambda shown, _: counted.append(len(shown)) or torch.zeros(len(shown)))
    with pytest.raises(management.InterruptProcessingException):
        model.rewards(torch.rand(40, 3, 16, 16), ["a dog"] * 40)
    assert counted == [16]


def test_nodes_that_need_a_direction_say_so(comfy: SimpleNamespace, written: Path) -> None:
    """Before the weights are read. Fails where a subject score is made of rewards, or the message does not say what to
    do."""
    from likeness.nodes.host.reward_model import RewardModel
    from likeness.nodes.metric_check import LikenessMetricCheck
    from likeness.nodes.score_subject import LikenessScoreSubject

    def read() -> Any:
        raise AssertionError("the weights were read")

    model = RewardModel(recognise(written / "ImageReward"), read)
    for run in (
        lambda: LikenessScoreSubject.execute(pictures(), pictures(), model, "mean of all references"),
        lambda: LikenessMetricCheck.execute(model, references=pictures(), other_classes=pictures()),
        lambda: model.text_features(["a dog"]),
    ):
        with pytest.raises(ValueError, match="together with its prompt"):
            run()
