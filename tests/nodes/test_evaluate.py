"""Evaluating in the process: which pictures are drawn and under which labels they are scored; the report's files."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.metrics.protocols import own
from likeness.metrics.rows import Row

SIZE = 32


class Colours:
    """Stands for a MetricModel: a picture's features are its mean colour, a text's its letters."""

    description = "mean colour"
    subject_metric = "subject_similarity"

    def features(self, pictures: Any) -> torch.Tensor:
        return torch.nn.functional.normalize(torch.stack([one.mean((1, 2)) for one in pictures]) + 1e-3, dim=1)

    def text_features(self, texts: list[str]) -> torch.Tensor:
        rows = [[len(text), text.count("a"), text.count("o")] for text in texts]
        return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)

    def cut_text_features(self, texts: list[str]) -> tuple[torch.Tensor, tuple[str, ...]]:
        return self.text_features(texts), tuple("cut" if "table" in text else "" for text in texts)


@pytest.fixture(scope="module")
def world(comfy: Any, tiny_checkpoint: Path) -> tuple[Any, Any, Any]:
    """(MODEL, CLIP, VAE) of tiny-unet, loaded in inference mode as the host does."""
    import comfy.sd

    with torch.inference_mode():
        return tuple(comfy.sd.load_checkpoint_guess_config(str(tiny_checkpoint))[:3])


def run(world: tuple[Any, Any, Any], text: str, subjects: list[Any], **changed: Any) -> Any:
    from likeness.nodes.host.drawn import How
    from likeness.nodes.host.evaluate import evaluate

    asked = {
        "method": "base", "step": None, "pictures": 3, "seed": 5, "by_class": False, "subject_models": [Colours()],
        "prompt_model": Colours(), "lora": None, "node_id": None, **changed,
    }  # fmt: skip
    how = How("", 2, 1.0, "euler", "normal", SIZE, SIZE, 2)
    with torch.inference_mode():
        return evaluate(*world, subjects, own(text), how, **asked)


def sampled(world: tuple[Any, Any, Any], prompt: str, seed: int) -> torch.Tensor:
    """What KSampler and VAEDecode give, alone: (H, W, 3) rounded to 8 bits."""
    import comfy.sample

    model, clip, vae = world
    with torch.inference_mode():
        text, none = (clip.encode_from_tokens_scheduled(clip.tokenize(each)) for each in (prompt, ""))
        ratio = vae.spacial_compression_encode()
        empty = torch.zeros(1, 4, SIZE // ratio, SIZE // ratio)
        noise = comfy.sample.prepare_noise(empty, seed)
        latent = comfy.sample.sample(model, noise, 2, 1.0, "euler", "normal", text, none, empty, seed=seed)
        return (vae.decode(latent)[0].clamp(0, 1) * 255).round() / 255


def test_every_picture_is_the_ksamplers_and_is_scored_under_its_own_labels(world: Any, comfy: Any) -> None:
    """Fails if a batch's pictures share a seed, the trigger is scored, labels slip, or references are another's."""
    from likeness.nodes.host.evaluate import Subject

    red, blue = torch.zeros(8, 8, 3), torch.zeros(6, 9, 3)
    red[..., 0], blue[..., 2] = 1, 1
    subjects = [Subject("one", "sks", "dog", (red,)), Subject("two", "zwx", "bowl", (blue, red))]
    found = run(world, "a {trigger} {class}\n{class} on a table", subjects)
    asked = ["a sks dog", "dog on a table", "a zwx bowl", "bowl on a table"]
    assert found.pictures.shape == (12, SIZE, SIZE, 3)
    for prompt, place in ((0, 0), (0, 2), (3, 1)):
        want = sampled(world, asked[prompt], 5 + place)
        torch.testing.assert_close(found.pictures[3 * prompt + place], want.float(), atol=1.01 / 255, rtol=0)
    scored = ["a dog", "dog on a table", "a bowl", "bowl on a table"]
    assert found.prompts == tuple(prompt for prompt in scored for _ in range(3))
    model = Colours()
    features = model.features(found.pictures.movedim(-1, 1))
    subject = [row for row in found.rows if row.metric == "subject_similarity"]
    for place, row in enumerate(subject):
        name, prompt = ("one", "two")[place // 6], scored[place // 3]
        assert (row.subject, row.prompt, row.seed, row.picture) == (name, prompt, 5 + place % 3, place % 3)
        references = [red] if name == "one" else [blue, red]
        want = np.mean([float(features[place] @ model.features(r.movedim(-1, 0)[None])[0]) for r in references])
        assert row.value == pytest.approx(want, abs=1e-5)
    texts = [row for row in found.rows if row.metric == "clip_t"]
    for place, row in enumerate(texts):
        assert row.value == pytest.approx(
            float(features[place] @ model.text_features([scored[place // 3]])[0]), abs=1e-5
        )
    assert [row.note for row in texts] == (["", "", ""] + ["cut"] * 3) * 2
    assert [row.metric for row in found.rows[24:]] == ["seconds_a_picture"] and found.rows[24].value > 0  # type: ignore[operator]


def test_image_reward_judges_each_picture_with_its_own_prompt(
    world: Any, comfy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without references. Fails where rows are called clip_t, a picture is judged with another prompt, a cut is not
    told, or an unreadable prompt is told only after drawing."""
    from likeness.devtools import tiny_image_reward as tiny
    from likeness.metrics.backbones import recognise
    from likeness.metrics.image_reward import ImageReward
    from likeness.nodes.host import evaluate
    from likeness.nodes.host.evaluate import Subject
    from likeness.nodes.host.reward_model import RewardModel

    backbone = recognise(tiny.image_reward(tmp_path / "ImageReward"))
    network = backbone.load()
    model = RewardModel(backbone, lambda: network)
    long = "the {class} " + "the " * 40
    found = run(world, f"a {{class}}\n{long}", [Subject("one", "", "cat", ())], prompt_model=model, subject_models=[])
    rows = [row for row in found.rows if row.metric == "image_reward"]
    judge = ImageReward(backbone, lambda: network, 1)  # type: ignore[arg-type, return-value]
    want = judge(found.pictures.movedim(-1, 1), [*["a cat"] * 3, *[long.format(**{"class": "cat"}).strip()] * 3])
    assert [row.value for row in rows] == pytest.approx(want.tolist(), abs=1e-4)
    assert [row.note for row in rows] == [""] * 3 + ["prompt cut to 35 tokens"] * 3
    assert {row.metric for row in found.rows} == {"image_reward", "seconds_a_picture"}
    (tmp_path / "ImageReward" / "vocab.txt").write_text("a")
    broken = RewardModel(backbone, lambda: network)
    monkeypatch.setattr(evaluate, "draw_pictures", None)  # nothing is drawn
    with pytest.raises(ValueError, match="it is not the vocabulary"):
        run(world, "a {class}", [Subject("one", "", "cat", ())], prompt_model=broken, subject_models=[])


def test_a_cancelled_run_goes_on_where_it_was(world: Any, comfy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if what was drawn is lost, drawn again, or taken for another model's, prompt's or seed's."""
    import comfy.model_management as management

    from likeness.nodes.host import drawn
    from likeness.nodes.host.evaluate import Subject

    subjects = [Subject("one", "", "cat", (torch.rand(8, 8, 3),))]
    calls: list[tuple[int, ...]] = []
    cancelled: list[bool] = []
    draw = drawn._draw

    def counted(patcher: Any, vae: Any, prompt: str, seeds: Any, *others: Any) -> torch.Tensor:
        calls.append(tuple(seeds))
        if len(calls) == 2 and not cancelled:
            cancelled.append(True)
            management.interrupt_current_processing()
        return draw(patcher, vae, prompt, seeds, *others)

    monkeypatch.setattr(drawn, "_draw", counted)
    text = "a {class} here\na {class} there"
    with pytest.raises(management.InterruptProcessingException):
        run(world, text, subjects)
    assert calls == [(5, 6), (7,)]
    first = run(world, text, subjects)
    again = run(world, text, subjects)
    assert calls[2:] == [(7,), (5, 6), (7,)], calls
    assert torch.equal(first.pictures, again.pictures) and first.rows == again.rows
    calls.clear()
    run(world, text, subjects, seed=6)
    assert len(calls) == 4
    lora = world[0].clone()
    name = next(key for key in lora.model.state_dict() if key.endswith("attn2.to_k.weight"))
    lora.add_patches({name: ("diff", (torch.ones_like(lora.model.state_dict()[name]),))})
    calls.clear()
    run((lora, *world[1:]), text, subjects)
    assert len(calls) == 4


def test_what_cannot_be_evaluated_is_told_before_anything_is_drawn(world: Any, comfy: Any) -> None:
    """Fails if an hour of drawing ends in an error that could be told at once."""
    from likeness.nodes.host.evaluate import Subject, subjects_of

    bare, seen = Subject("x", "", "dog", ()), torch.rand(1, 4, 4, 3)
    with pytest.raises(ValueError, match="no pictures of 'x'"):
        run(world, "a", [bare])
    with pytest.raises(ValueError, match="Nothing is to be scored"):
        run(world, "a", [bare], subject_models=[], prompt_model=None)
    with pytest.raises(ValueError, match="Both references and a dataset"):
        subjects_of(SimpleNamespace(members=tuple), seen, "", "", "")  # type: ignore[arg-type]
    assert run(world, "a", [bare], subject_models=[]).rows[0].metric == "clip_t"


def test_a_metric_is_checked_on_three_sets(comfy: Any) -> None:
    """Fails if the sets are swapped, the references are scored against themselves, or NaN is taken for black."""
    from likeness.nodes.metric_check import LikenessMetricCheck

    chance = torch.Generator().manual_seed(0)
    red, orange, blue = (
        (torch.tensor(colour) + 0.1 * torch.rand(4, 8, 8, 3, generator=chance)).clamp(0, 1)
        for colour in ([0.8, 0.1, 0.1], [0.8, 0.4, 0.1], [0.1, 0.1, 0.8])
    )
    before = (Row("niqe", 3.0),)
    sets = {"references": red, "same_class": orange, "other_classes": blue, "metrics": before}
    rows, plot, table, auc = LikenessMetricCheck.execute(Colours(), **sets).args
    assert rows[0] == before[0] and auc == 1.0 and plot.shape[-1] == 3
    means = [np.mean([row.value for row in rows if row.method == name]) for name in ("same subject", "same class",
             "other classes")]  # fmt: skip
    assert 1 > means[0] > means[1] > means[2] and "| same class | 4 |" in table
    for wrong, words in (
        ({"references": None}, "no pictures of the subject"),
        ({"same_class": torch.full((1, 8, 8, 3), torch.nan)}, "same class holds NaN"),
        ({"references": red[:1]}, "two or more"),
    ):
        with pytest.raises(ValueError, match=words):
            LikenessMetricCheck.execute(Colours(), **{**sets, **wrong})


def test_a_report_is_written_whole_and_read_back(comfy: Any) -> None:
    """Fails if NaN reaches /history, a plot of an older report stays, or the picture shown is not the one saved."""
    from likeness.nodes.report import LikenessReport

    rows = tuple(
        Row(metric, value + seed / 100, method, "dog", "p", seed, model="M")
        for method, value in (("base", 0.3), ("LoRA", 0.6))
        for metric in ("subject_similarity", "clip_t")
        for seed in range(3)
    )
    rows += (Row("clip_t", float("nan"), "base", "dog", "p", 9, model="M"),)
    given = (rows[:7], "my report", "t", "auto", "")
    made = LikenessReport.execute(*given, metrics_2=rows[3:])
    folder = comfy.base / "output" / "likeness" / "my_report"
    assert {path.name for path in folder.iterdir()} >= {
        "report.md",
        "report.csv",
        "report.json",
        "bars.png",
        "pareto.png",
    }
    shown = made.ui
    assert all(isinstance(value, list) for value in shown.values())
    json.dumps(shown, allow_nan=False)
    assert [row["value"] for row in shown["rows"] if row["seed"] == 9] == [None] and len(shown["rows"]) == 13
    saved = np.asarray(Image.open(folder / "bars.png").convert("RGB"), dtype=np.float32) / 255
    assert made.args[0].shape[0] == 2 and np.array_equal(made.args[0][0].numpy(), saved)
    assert shown["images"][0] == {"filename": "bars.png", "subfolder": "likeness/my_report", "type": "output"}
    assert (
        json.loads(made.args[3])["figures"] == shown["metrics"] and (folder / "report.md").read_text() == made.args[1]
    )
    LikenessReport.execute(tuple(row for row in rows if row.metric == "clip_t"), *given[1:])
    assert not (folder / "pareto.png").exists() and (folder / "bars.png").exists()
    for wrong in ("..", " ", "///"):
        with pytest.raises(ValueError, match="cannot be a folder's name"):
            LikenessReport.execute(rows, wrong, "t", "auto", "")
