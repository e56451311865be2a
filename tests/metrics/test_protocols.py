"""Published prompts, and the class noun in the trigger's place."""

from __future__ import annotations

import pytest
import torch

from likeness.metrics.costs import Drawn, lora_rows, seconds_a_picture, time_row
from likeness.metrics.meaning import meaning
from likeness.metrics.protocols import FILES, Prompt, own, picture_seeds, prompts_of, published


def test_the_published_counts_and_words() -> None:
    """Fails if a prompt is lost or copied twice. Oracle: the papers: 25 × 4 for 21 objects and 9 live subjects, 11."""
    objects, live, faces = (published(name) for name in FILES)
    assert [len(set(each.templates)) for each in (objects, live, faces)] == [25, 25, 11]
    assert (objects.pictures, live.pictures) == (4, 4)
    assert [sum(len(names) for _, names in each.subjects) for each in (objects, live)] == [21, 9]
    assert len(set(objects.templates) & set(live.templates)) == 15
    drawn = [prompt.drawn for prompt in prompts_of(objects, "sks", "teapot")]
    assert drawn[0] == "a sks teapot in the jungle" and drawn[-1] == "a cube shaped sks teapot"
    assert "a sks dog in a purple wizard outfit" in [prompt.drawn for prompt in prompts_of(live, "sks", "dog")]
    assert prompts_of(faces, "cr7man", "man")[1] == Prompt("cr7man smiling at camera", "a man smiling at camera")


@pytest.mark.parametrize("name", FILES)
def test_no_trigger_is_scored(name: str) -> None:
    """Fails if CLIP is asked about a word that it never saw, or braces are left in a prompt."""
    for prompt in prompts_of(published(name), "zwx", "toy"):
        assert "zwx" in prompt.drawn and "zwx" not in prompt.scored and "toy" in prompt.scored
        assert not set("{}") & set(prompt.drawn + prompt.scored)


@pytest.mark.parametrize(
    ("template", "drawn", "scored"),
    [
        ("a {trigger} {class} on grass", "a sks dog on grass", "a dog on grass"),
        ("{trigger} on grass", "sks on grass", "dog on grass"),
        ("a sks dog, and SKS again", "a sks dog, and SKS again", "a dog, and dog again"),
        ("{subject} asks for sksx", "a sks dog asks for sksx", "a dog asks for sksx"),
        ("grass", "grass", "grass"),
    ],
)
def test_own_prompts(template: str, drawn: str, scored: str) -> None:
    """Fails if the noun is doubled ("a dog dog"), or a longer word that begins with the trigger is torn."""
    protocol = own(f"\n{template}\n\n{template}\n")
    assert prompts_of(protocol, "sks", "dog") == [Prompt(drawn, scored)]
    assert prompts_of(protocol, "sks", "dog", by_class=True) == [Prompt(scored, scored)]


def test_a_base_model_and_a_taught_one_are_asked_under_one_name() -> None:
    """Fails if their rows could not be paired."""
    protocol = published("DreamBooth, objects")
    base, taught = prompts_of(protocol, "", "can"), prompts_of(protocol, "sks", "can")
    assert [each.scored for each in base] == [each.scored for each in taught] == [each.drawn for each in base]


def test_what_cannot_be_asked_is_told() -> None:
    """Fails if "{clas}" is drawn as it stands, or "a  in the jungle"."""
    with pytest.raises(ValueError, match=r"names \{clas\}"):
        prompts_of(own("a {clas}"), "sks", "dog")
    with pytest.raises(ValueError, match="needs a class noun"):
        prompts_of(own("a {class}"), "", "")
    with pytest.raises(ValueError, match="no prompt to draw"):
        own(" \n")
    with pytest.raises(ValueError, match="no protocol"):
        published("DreamBooth")
    assert list(picture_seeds(2**64 - 1, 2)) == [2**64 - 1, 0]


def test_costs() -> None:
    """Fails if the warm-up is in the mean, batches count as pictures, or alphas are counted as trained."""
    assert seconds_a_picture([Drawn(4, 100.0, warm_up=True), Drawn(4, 6.0), Drawn(1, 4.0)]) == 2.0
    row = time_row([Drawn(4, 9.0, warm_up=True)], "a", None, "64×64")
    assert row.value is None and "warm-up" in row.note
    lora = {
        "x.lora_up.weight": torch.zeros(8, 2).half(),
        "x.lora_down.weight": torch.zeros(2, 5),
        "x.alpha": torch.ones(1),
    }
    numbers, size = lora_rows(lora, "a", 50)
    assert (numbers.value, size.value, size.step) == (26.0, (16 * 2 + 10 * 4) / 1e6, 50)
    assert meaning("file_size").cost and meaning("file_size").arrow == "↓"
    with pytest.raises(ValueError, match="no tensors"):
        lora_rows({}, "a", None)
