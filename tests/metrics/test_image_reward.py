"""ImageReward against the authors' own code: the same file, pictures and prompts.

Run once more with transformers 4 by test_backbones_older.py.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from likeness.devtools import tiny_image_reward as tiny
from likeness.metrics.backbones import Backbone, recognise
from likeness.metrics.embed import embedder
from likeness.metrics.image_reward import ImageReward, image_reward
from likeness.metrics.image_reward_files import renamed
from likeness.metrics.wordpiece import wordpiece

PROMPTS = ["a red dog in the snow", "cats on a very long mat, a Café!", "the " * 40 + "dog"]
# The package image-reward 1.5's score_gard and tokenizer, with transformers 4.27.4 and timm 0.6.13, on the folder that
# tiny_image_reward writes, its two BLIP sizes and the width of its head set to this folder's.
# float32 is exact to 6e-6 here (against float64).
AUTHORS = [-3.63042331, 1.80435264, -2.70330286]
TOKENS = [
    [2, 5, 13, 6, 8, 9, 10, 3],
    [2, 7, 12, 11, 5, 16, 18, 15, 19, 5, 17, 21, 3],
    [2, *[9] * 33, 3],
]


def judge_of(backbone: Backbone, batch: int = 8) -> ImageReward:
    network = backbone.load()
    return ImageReward(backbone, lambda: network, batch)  # type: ignore[arg-type, return-value]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.image_reward(tmp_path_factory.mktemp("reward") / "ImageReward")


@pytest.fixture(scope="module")
def judge(folder: Path) -> ImageReward:
    return judge_of(recognise(folder))


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    """Of 224 pixels, so that nothing is resized; levels of 8 bits."""
    levels = np.stack([np.random.RandomState(k).randint(0, 256, (7, 8, 3), dtype=np.uint8) for k in range(3)])
    return torch.from_numpy(levels.repeat(32, 1).repeat(28, 2)).permute(0, 3, 1, 2).float() / 255


def test_rewards_are_those_of_the_authors_code(judge: ImageReward, pictures: torch.Tensor) -> None:
    """Fails for a weight that goes elsewhere, no cross-attention, a causal mask, padding that is read, another token,
    another epsilon or number of heads, or a score that is not standardised."""
    assert judge(pictures, PROMPTS).tolist() == pytest.approx(AUTHORS, abs=2e-5)
    assert judge.backbone.description == "ImageReward, 224 bicubic, crop 224"
    assert image_reward(pictures, PROMPTS, judge) == pytest.approx(sum(AUTHORS) / 3, abs=2e-5)


def test_prompts_are_cut_into_the_authors_tokens(judge: ImageReward) -> None:
    """Capitals, accents, pieces of words, 42 tokens. Fails where a prompt is read otherwise, or a cut is not told."""
    found = judge.tokenizer(PROMPTS)
    for ids, mask, want in zip(found.values["input_ids"], found.values["attention_mask"], TOKENS, strict=True):
        assert ids.tolist() == want + [0] * (35 - len(want)) and int(mask.sum()) == len(want) == int((mask > 0).sum())
    assert found.cut == judge.cut(PROMPTS) == (False, False, True) and found.limit == 35


@settings(max_examples=8)
@given(st.permutations([0, 1, 2, 0, 1]), st.integers(1, 6))
def test_order_and_batch_size_do_not_matter(
    judge: ImageReward, pictures: torch.Tensor, order: list[int], batch: int
) -> None:
    """Fails where a picture's reward depends on its neighbours, or prompts and pictures slip in a batch."""
    counted: list[int] = []
    other = ImageReward(judge.backbone, judge.loaded, batch)
    found = other(pictures[order], [PROMPTS[number] for number in order], counted.append)
    assert found.tolist() == pytest.approx([AUTHORS[number] for number in order], abs=2e-5)
    assert sum(counted) == 5 and max(counted) <= batch


def test_one_prompt_for_pictures_of_any_size(judge: ImageReward, pictures: torch.Tensor) -> None:
    """Doubled pictures show the same after resizing. Fails where sizes cannot be mixed, or the prompt is one's only."""
    doubled = torch.nn.functional.interpolate(pictures, scale_factor=2)
    found = judge([pictures[0], doubled[0], pictures[1]], PROMPTS[:1])
    single = [float(judge(pictures[number : number + 1], PROMPTS[:1])) for number in (0, 0, 1)]
    assert found.tolist() == pytest.approx(single, abs=0.2) and abs(single[0] - single[2]) > 1


def test_every_published_tensor_is_used_or_named_as_unused(folder: Path) -> None:
    """Fails where two tensors get one name, a needed one is dropped, or a name is left as it was."""
    shapes = tiny.published_shapes()
    used = [new for name in shapes if (new := renamed(name)) is not None]
    assert len(used) == len(set(used)) == len(shapes) - 4
    assert {name for name in shapes if renamed(name) is None} == {
        f"blip.{which}_proj.{part}" for which in ("vision", "text") for part in ("weight", "bias")
    }
    assert {name.split(".")[0] for name in used} == {"vision", "text", "head"}
    assert set(used) == set(recognise(folder).load().state_dict())


def changed(folder: Path, place: Path, **tensors: torch.Tensor | None) -> Path:
    """The folder's copy with other tensors, or, for None, without them; `_` stands for a dot."""
    place.mkdir()
    for name in ("med_config.json", "vocab.txt"):
        (place / name).write_bytes((folder / name).read_bytes())
    state = torch.load(folder / "ImageReward.pt", weights_only=True)
    for name, tensor in tensors.items():
        state.pop(name) if tensor is None else state.update({name: tensor})
    torch.save(state, place / "ImageReward.pt")
    return place


def test_a_file_that_is_not_whole_or_anothers_is_named(folder: Path, tmp_path: Path, judge: ImageReward) -> None:
    """Fails where a missing or foreign tensor gives a reward of chance, or the message does not say which it is."""
    query = "blip.text_encoder.encoder.layer.1.crossattention.self.query.weight"
    for number, (tensors, said) in enumerate(
        [
            ({query: None}, r"lacks 1 of ImageReward's .*layer\.1\.crossattention\.self\.query\.weight"),
            ({query: torch.zeros(48, 47)}, r"layer\.1\.crossattention.*\(48, 47\), expected \(48, 48\)"),
            ({"blip.visual_encoder.pos_embed": torch.zeros(1, 577, 128)}, "sees 384 pixels"),
            ({"blip.visual_encoder.patch_embed.proj.weight": None}, "another model"),
        ]
    ):
        with pytest.raises(ValueError, match=said):
            recognise(changed(folder, tmp_path / str(number), **tensors)).load()  # type: ignore[arg-type]
    other = tmp_path / "0" / "ImageReward.pt"
    for content, said in ((b"<html>", "cannot be read as tensors"), (None, "cannot be read")):
        torch.save(Path("x"), other) if content is None else other.write_bytes(content)
        with pytest.raises(ValueError, match=said):
            recognise(tmp_path / "0").load()


def test_safetensors_no_configuration_and_tensors_too_many(
    folder: Path, tmp_path: Path, pictures: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails where a converted file is not found, an unknown tensor is not told, or the published sizes are not used
    without med_config.json."""
    place = changed(folder, tmp_path / "converted", extra=torch.zeros(2))
    state = torch.load(place / "ImageReward.pt", weights_only=True)
    (place / "ImageReward.pt").unlink()
    save_file(state, place / "ImageReward.safetensors")
    with caplog.at_level(logging.WARNING):
        found = judge_of(recognise(place))
    assert found(pictures, PROMPTS).tolist() == pytest.approx(AUTHORS, abs=2e-5)
    assert "1 tensors are not ImageReward's" in caplog.text and "extra" in caplog.text
    (place / "med_config.json").unlink()
    with pytest.raises(ValueError, match=r"word_embeddings\.weight is \(24, 48\), expected \(30524, 768\)|lacks"):
        recognise(place).load()


def test_wrong_folders_are_told_early(folder: Path, tmp_path: Path) -> None:
    """Before 1.8 GB are read. Fails where a missing vocabulary, another model's, a broken configuration or another
    family is found out late or not at all."""
    place = changed(folder, tmp_path / "x")
    (place / "vocab.txt").write_text("\n".join(tiny.VOCABULARY[:-1]))
    with pytest.raises(ValueError, match="has 21 words, not 22"):
        judge_of(recognise(place)).cut(["a dog"])
    (place / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"lacks \[PAD\], \[UNK\]"):
        wordpiece(place / "vocab.txt", 24, 35)
    (place / "vocab.txt").unlink()
    with pytest.raises(ValueError, match=r"has no vocab.txt.*bert-base-uncased"):
        recognise(place)
    with pytest.raises(ValueError, match="holds ImageReward, not DINO"):
        recognise(folder, "DINO")
    (place / "vocab.txt").write_text("")
    for text, said in (("{", "cannot be read"), (json.dumps({"hidden_size": "x"}), "does not say BERT's hidden_size")):
        (place / "med_config.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            recognise(place)


def test_pictures_and_prompts_that_are_none(judge: ImageReward, pictures: torch.Tensor, folder: Path) -> None:
    """Fails where NaN, a pixel, an empty prompt or numbers that do not fit give a reward, or a cosine is made of it."""
    broken = pictures.clone()
    broken[1, 0, 0, 0] = float("nan")
    for shown, prompts, said in (
        (broken, PROMPTS, "must lie in"),
        (pictures[:0], PROMPTS, "no pictures"),
        (pictures[..., :1, :1], PROMPTS, "1 × 1 pixels"),
        (pictures[:, :1], PROMPTS, "must be"),
        (pictures, PROMPTS[:2], "3 pictures and 2 prompts"),
        (pictures, ["a dog", " ", "a cat"], "prompt 2 is empty"),
    ):
        with pytest.raises(ValueError, match=said):
            judge(shown, prompts)
    with pytest.raises(ValueError, match="no prompts"):
        judge.cut([])
    with pytest.raises(ValueError, match="together with its prompt"):
        embedder(recognise(folder))(pictures)
    with pytest.raises(ValueError, match="together with its prompt"):
        embedder(recognise(folder)).texts(["a dog"])


def test_a_damaged_file_is_no_low_reward(folder: Path, tmp_path: Path, pictures: torch.Tensor) -> None:
    """Fails where weights that are NaN give a row without a figure, as if a picture had none."""
    place = changed(folder, tmp_path / "nan", **{"mlp.layers.7.bias": torch.full((1,), float("nan"))})
    with pytest.raises(ValueError, match="no number"):
        judge_of(recognise(place))(pictures, PROMPTS)
