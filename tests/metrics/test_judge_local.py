"""A judge from a folder: a tiny random LLaVA, saved as any other, against a greedy loop over its logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from likeness.metrics.judge_local import LocalJudge, load_processor, load_vlm

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "Yes", "No", "Is", "it", "?", "user", "assistant", ":"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> "
    "{% else %}{{ c['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 30,000 weights with words for tokens."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor = transformers.LlavaProcessor(
        pictures, words, patch_size=14, vision_feature_select_strategy="default", chat_template=TEMPLATE,
        image_token="<image>", num_additional_image_tokens=1,
    )  # fmt: skip
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28,
            patch_size=14, projection_dim=16,
        ),
        text_config=transformers.LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            vocab_size=len(WORDS), pad_token_id=0, bos_token_id=1, eos_token_id=2,
        ),
        image_token_index=4, image_token_id=4, vision_feature_layer=-2,
    )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)  # large, so that pictures sway the answer
        head = model.lm_head.weight
        head[4] = (head[5] + head[6]) / 2  # never the likeliest: a picture's token in an answer has no picture
    place = tmp_path_factory.mktemp("vlm") / "tiny"
    model.save_pretrained(place)
    processor.save_pretrained(place)
    return place


def greedy(model: Any, processor: Any, question: str, pictures: list[Image.Image], most: int) -> str:
    """The likeliest token again and again, from the whole sequence each time."""
    text = "user : " + "<image> " * len(pictures) + question + " assistant : "
    inputs = processor(text=[text], images=[pictures], return_tensors="pt")
    ids, made = inputs["input_ids"], []
    with torch.no_grad():
        for _ in range(most):
            mask = torch.ones_like(ids)
            logits = model(input_ids=ids, attention_mask=mask, pixel_values=inputs["pixel_values"]).logits[0, -1]
            made.append(int(logits.argmax()))
            if made[-1] == 2:
                break
            ids = torch.cat([ids, torch.tensor([[made[-1]]])], dim=1)
    return str(processor.batch_decode([made], skip_special_tokens=True)[0]).strip()


def test_the_folder_s_model_answers_greedily(folder: Path) -> None:
    """Fails if a picture is lost or out of order, the question is not in the template, the prompt comes back with the
    answer, or the answer is drawn by chance."""
    model, processor = load_vlm(folder), load_processor(folder)
    ask = LocalJudge(lambda: model, processor, max_tokens=5)
    chance = np.random.default_rng(0)
    pictures = [Image.fromarray(chance.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(3)]
    pairs = [[first, second] for first in pictures for second in pictures]
    answers = [ask("Is it ?", pair) for pair in pairs]
    assert answers == [greedy(model, processor, "Is it ?", pair, 5) for pair in pairs]
    assert len(set(answers)) > 2
    assert len(LocalJudge(lambda: model, processor, 5, stopping=lambda: True)("Is it ?", pairs[1]).split()) <= 1


def test_a_folder_that_is_no_vision_language_model_is_refused(folder: Path, tmp_path: Path) -> None:
    """Fails if an empty folder, or one without a processor, ends in an error that does not name it."""
    with pytest.raises(ValueError, match="holds no vision-language model"):
        load_vlm(tmp_path)
    with pytest.raises(ValueError, match="has no processor"):
        load_processor(tmp_path)
