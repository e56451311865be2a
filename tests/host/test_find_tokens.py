"""Find Rare Tokens and Token Prior on a running server, and the shipped workflow that joins them."""

from __future__ import annotations

import io
import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from likeness.experiments.client import Client, Event, Interrupted, RunFailed
from likeness.experiments.workflow import set_inputs, to_api

Graph = dict[str, dict[str, Any]]
WORKFLOW = Path(__file__).resolve().parents[2] / "workflows" / "find_token.json"
WORDS = ("guitar", "iklan", "xqzt")


def graph(words: str, checkpoint: str = "tiny-unet.safetensors", **inputs: Any) -> Graph:
    shown = {
        "template": "a flat picture of a {word}", "seed": 7, "pictures": 2, "steps": 2, "cfg": 1.0,
        "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64,
    }  # fmt: skip
    return {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "prior": {
            "class_type": "LikenessTokenPrior",
            "inputs": {
                "model": ["base", 0],
                "clip": ["base", 1],
                "vae": ["base", 2],
                "words": words,
                **shown,
                **inputs,
            },
        },
        "word": {"class_type": "PreviewAny", "inputs": {"source": ["prior", 0]}},
        "json": {"class_type": "PreviewAny", "inputs": {"source": ["prior", 3]}},
    }


def drawn(base: Path, word: str) -> dict[str, tuple[int, np.ndarray]]:
    """Kept pictures of a word: file -> (when it was written, pixels)."""
    found = sorted((base / "output" / "likeness" / "pictures").glob(f"*/a_flat_picture_of_a_{word}_*.png"))
    return {path.name: (path.stat().st_mtime_ns, np.asarray(Image.open(path).convert("RGB"))) for path in found}


def test_the_word_of_the_most_varied_pictures_is_chosen_and_nothing_is_drawn_twice(client: Client, base: Path) -> None:
    """Oracle: scikit-image's SSIM of the files. Fails if pictures of different seeds or words are mixed up, words have
    different seeds, SSIM is that of something else, the highest is chosen, or a second run draws again."""
    run = client.run(graph("\n".join(WORDS)), timeout=300)
    read = json.loads(run.text("json"))
    kept = {word: drawn(base, word) for word in WORDS}
    for each in read["words"]:
        one, two = (pixels for _, pixels in kept[each["word"]].values())
        how = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
        _, whole = structural_similarity(one, two, channel_axis=2, full=True, win_size=11, **how)
        assert each["ssim"] == pytest.approx(float(whole.mean()), abs=5e-3) and len(each["pairs"]) == 1
    assert read["words"] == sorted(read["words"], key=lambda each: each["ssim"])
    assert run.text("word") == read["chosen"] == read["words"][0]["word"] and "noise is unknown" in read["warning"]
    assert read["seeds"] == [7, 8]
    for one, other in combinations(WORDS, 2):  # the same noise, so the same places, but not the same picture
        assert [name.split("_")[-2:] for name in kept[one]] == [name.split("_")[-2:] for name in kept[other]]
        assert any((a[1] != b[1]).any() for a, b in zip(kept[one].values(), kept[other].values(), strict=True))
    sheet = Image.open(io.BytesIO(client.view(run.files("prior")[0])))
    assert sheet.height > 3 * 192 and sheet.width >= 2 * 192

    again = client.run(graph(f"{WORDS[2]}, {WORDS[0]},\nzzzz"), timeout=300)
    for word in (WORDS[0], WORDS[2]):
        assert {name: when for name, (when, _) in drawn(base, word).items()} == {
            name: when for name, (when, _) in kept[word].items()
        }
    scores = {each["word"]: each["ssim"] for each in json.loads(again.text("json"))["words"]}
    assert scores[WORDS[0]] == {each["word"]: each["ssim"] for each in read["words"]}[WORDS[0]]
    assert len(scores) == 3 and len(drawn(base, "zzzz")) == 2


def test_a_cancel_keeps_what_was_drawn(client: Client, base: Path) -> None:
    """Fails if the pictures of a cancelled run are lost, or it goes on."""
    words = "vvva\nvvvb\nvvvc"

    def cancel(event: Event) -> None:
        if event.kind == "preview":
            client.interrupt()

    with pytest.raises(Interrupted):
        client.run(graph(words), on_event=cancel, timeout=300)
    first = drawn(base, "vvva")
    assert len(first) == 2 and not drawn(base, "vvvc")
    client.run(graph(words), timeout=300)
    assert {name: when for name, (when, _) in drawn(base, "vvva").items()} == {
        n: when for n, (when, _) in first.items()
    }
    assert len(drawn(base, "vvvc")) == 2


def test_inputs_that_make_no_sense_are_told(client: Client, tiny_mmdit: str) -> None:
    """Fails if a mistake passes in silence; the second small model is an SD3 without T5."""
    for words, inputs, message in (
        ("a", {"template": "a photo"}, r"write \{word\} into it"),
        (" ,\n", {}, "There is no word to try"),
    ):
        with pytest.raises(RunFailed, match=message):
            client.run(graph(words, **inputs))
    find: Graph = {
        "base": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": tiny_mmdit}},
        "find": {
            "class_type": "LikenessFindTokens",
            "inputs": {
                "clip": ["base", 1], "shortest": 4, "longest": 5, "letters": "zz[a-z]+", "count": 3,
                "listed": "both", "tokenizer": "t5xxl",
            },
        },
        "words": {"class_type": "PreviewAny", "inputs": {"source": ["find", 0]}},
    }  # fmt: skip
    with pytest.raises(RunFailed, match=r"no tokenizer 't5xxl'; it has clip_"):
        client.run(find)
    find["find"]["inputs"]["tokenizer"] = "auto"
    words = client.run(find).text("words").splitlines()
    assert len(words) == 31 and all(word.startswith("zz") for word in words[:3]) and words[3] == "immen"


def test_the_workflow_finds_and_chooses_a_word(client: Client, object_info: dict[str, Any]) -> None:
    """Fails if the graph does not run as shipped (but for its size), or the chosen word is none of the candidates."""
    made = to_api(json.loads(WORKFLOW.read_text("utf-8")), object_info)
    set_inputs(made, "LikenessFindTokens", letters="qu[a-z]+", count=2)
    set_inputs(made, "LikenessTokenPrior", pictures=2, steps=2, cfg=1.0)
    run = client.run(made, timeout=300)
    shown = [run.text(node) for node in made if made[node]["class_type"] == "PreviewAny"]
    assert any("has the weakest prior" in text for text in shown)
    assert any(text.startswith("qu") and "\n" not in text for text in shown)
    assert len(run.files()) >= 1
